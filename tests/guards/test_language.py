"""Scripts beside Unicode's own names of characters."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.hold_back import found
from guards.language import RUN, ForeignLetters, excess, script_of, scripts
from guards.spans import Span
from penstock.errors import ConfigError
from tests.guards.streams import pieces_of, streamed, whole

NAMES = {
    "latin": "LATIN",
    "greek": "GREEK",
    "cyrillic": "CYRILLIC",
    "hebrew": "HEBREW",
    "arabic": "ARABIC",
    "devanagari": "DEVANAGARI",
    "thai": "THAI",
    "hangul": "HANGUL",
    "han": "CJK UNIFIED",
}


@pytest.mark.parametrize(("script", "name"), NAMES.items())
def test_letters_are_those_that_unicode_calls_so(script: str, name: str) -> None:
    letters = [c for c in map(chr, range(0x20, 0x10000)) if c.isalpha() and unicodedata.name(c, "").startswith(name)]
    right = sum(script_of(letter) == script for letter in letters)
    assert right / len(letters) > 0.95  # the others stand in blocks of symbols and supplements
    strangers = [c for c in map(chr, range(0x20, 0xFFFF)) if script_of(c) == script]
    wrong = sum(
        not unicodedata.name(c, name).startswith((name, "MICRO", "FEMININE", "MASCULINE", "MODIFIER"))
        for c in strangers
    )
    assert wrong / len(strangers) < 0.08


def test_letters_are_counted_and_nothing_else() -> None:
    assert scripts("a1! \u0431\u0432 \u6f22 \U0001f600") == {"latin": 1, "cyrillic": 2, "han": 1}
    assert scripts("12.") == {}


LETTERS = st.text("ab \u0431\u0432\u6f221", max_size=20)


@given(LETTERS, st.lists(st.integers(0, 100), max_size=8))
def test_every_split_gives_what_the_whole_gives(text: str, cuts: list[int]) -> None:
    detectors = [ForeignLetters(["latin", "han"])]
    assert streamed(detectors, pieces_of(text, cuts)) == whole(detectors, text)


def test_long_runs_are_cut() -> None:
    text = "see " + "\u0431" * (RUN + 6)
    assert found([ForeignLetters(["latin"])], text) == [Span(4, 4 + RUN, "script"), Span(4 + RUN, 10 + RUN, "script")]
    assert streamed([ForeignLetters(["latin"])], list(text)) == "see <script><script>"


def test_an_unknown_script_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cyrillic'"):
        ForeignLetters(["cyrilic"])


def test_size_is_in_characters() -> None:
    assert excess("\u6f22" * 12, 10) == 2
    assert excess("short", 10) == 0
