"""Lists of terms, beside a search by `re`."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.hold_back import found
from guards.spans import Span
from guards.terms import Terms, folded, terms_of
from penstock.errors import ConfigError
from tests.guards.streams import pieces_of, streamed, whole

TERMS = st.lists(st.text("abB \u00c4", min_size=1, max_size=5).filter(str.strip), min_size=1, max_size=4)
TEXT = st.text("abB -\u00e4\u00df", max_size=20)


@given(TERMS, st.booleans(), TEXT)
def test_it_is_the_leftmost_and_longest_of_all(terms: list[str], words: bool, text: str) -> None:
    boundary = (r"(?:(?<!\w)|(?!\w))", r"(?:(?<!\w)|(?!\w))") if words else ("", "")
    seen = [folded(term.strip()) for term in terms]
    each = sorted(map(re.escape, seen), key=len, reverse=True)
    match = re.search(f"{boundary[0]}(?:{'|'.join(each)}){boundary[1]}", folded(text))
    assert Terms("t", terms, words=words).search(text) == (match and Span(*match.span(), "t"))


@given(TERMS, st.booleans(), TEXT, st.lists(st.integers(0, 100), max_size=8))
def test_every_split_gives_what_the_whole_gives(terms: list[str], words: bool, text: str, cuts: list[int]) -> None:
    detectors = [Terms("t", terms, words=words)]
    assert streamed(detectors, pieces_of(text, cuts)) == whole(detectors, text)


@given(TERMS, TEXT, TEXT)
def test_before_what_is_alive_nothing_changes(terms: list[str], text: str, more: str) -> None:
    detector = Terms("t", terms)
    now, later, alive = detector.search(text), detector.search(text + more), detector.alive(text)
    assert now == later if now and now.begins < alive else not later or later.begins >= alive


def test_case_and_white_space_do_not_matter_and_words_are_words() -> None:
    terms = Terms("topic", ["Stra\u00dfe", "insider trading", "ass"])
    assert [span.start for span in found([terms], "STRA\u00dfE; Insider\nTrading in a class")] == [0, 8]
    assert [span.start for span in found([Terms("topic", ["ass"], words=False)], "a class")] == [4]


def test_nothing_is_held_that_begins_no_term() -> None:
    terms = Terms("topic", ["turbine"])
    assert terms.alive("the turb") == 4
    assert terms.alive("the disturb") == len("the disturb")


def test_terms_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "terms.txt"
    file.write_text("# ours\nalpha\n\n  beta gamma \n")
    assert terms_of(file) == ["alpha", "beta gamma"]
    with pytest.raises(ConfigError, match="cannot be read"):
        terms_of(tmp_path / "none.txt")
    with pytest.raises(ConfigError, match="'topic' is empty"):
        Terms("topic", [" "])
