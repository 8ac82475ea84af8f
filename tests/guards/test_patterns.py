r"""Detectors made of expressions: beside `re`, on random expressions and texts."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.beginnings import parse, written
from guards.heads import heads, without_lead
from guards.patterns import Headed, Pattern, detectors
from guards.seen import seen
from guards.spans import Span
from tests.guards.streams import pieces_of, streamed, whole

HEADS = st.sampled_from(["ab", "ba", "(?:ab|cc)", r"\bab", "(?i:AB)", "[Bb]a", r"\b", "[ab]", ""])
BODIES = st.sampled_from(["c+", "[bc]{1,3}", "(c|-)a", r"a*(b+)\b", "-?(c{2,})", r"(?:a|bc)*-", "(a)(?:$|-)"])
EXPRESSIONS = st.builds("{}{}".format, HEADS, BODIES)
PATTERNS = st.lists(
    st.builds(
        Pattern,
        st.sampled_from("xyz"),
        EXPRESSIONS,
        st.sampled_from([None, lambda part, _: len(part) - part.endswith("c")]),
        part=st.sampled_from([0, 0, -1]),
        tail=st.sampled_from(["", "", "c", "a-"]),
        greedy=st.booleans(),
    ),
    min_size=1,
    max_size=4,
)
TEXT = st.text("aabbcc-", max_size=20)
CUTS = st.lists(st.integers(0, 100), max_size=10)


@given(PATTERNS, TEXT, CUTS)
def test_every_split_gives_what_the_whole_text_gives(patterns: list[Pattern], text: str, cuts: list[int]) -> None:
    found = detectors(patterns)
    assert streamed(found, pieces_of(text, cuts)) == whole(found, text)


@given(PATTERNS, TEXT, TEXT)
def test_what_is_found_before_what_is_alive_stays(patterns: list[Pattern], text: str, more: str) -> None:
    for detector in detectors(patterns):
        alive = detector.alive(text)
        for start in range(len(text)):
            now, later = detector.search(text, start), detector.search(text + more, start)
            if now and now.begins < alive:
                assert later == now
            else:
                assert not later or later.begins >= alive


@given(st.lists(EXPRESSIONS, min_size=1, max_size=4), TEXT)
def test_it_is_the_leftmost_and_longest_match_of_any(expressions: Sequence[str], text: str) -> None:
    found = detectors([Pattern("x", expression) for expression in expressions])
    spans = [span for detector in found if (span := detector.search(text))]
    best = min(spans, key=lambda span: (span.begins, -span.end), default=None)
    assert (best and (best.start, best.end)) == next(
        (
            (start, max(ends))
            for start in range(len(text))
            if (ends := [end for end in range(start + 1, len(text) + 1) if matches(expressions, text, start, end)])
        ),
        None,
    )


def matches(expressions: Sequence[str], text: str, start: int, end: int) -> bool:
    behind = rf"(?=.{{{len(text) - end}}}\Z)"
    return any(
        re.compile(f"(?:{expression.replace('$', r'(?!.)')}){behind}", re.ASCII).match(text, start)
        for expression in expressions
    )


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (r"\b(?:AKIA|ASIA)[A-Z2-7]{16}", {"akia", "asia"}),
        (r"(?i)Se_?cret-", {"se"}),
        (r"x{3}y", {"xxxy"}),
        (r"[Aa]pi\.key", {"api.key"}),
        (r"(?:ab|c)d", {"abd", "cd"}),
        (r"(?:ab|c)[0-9]", None),  # one character is no head
        (r"[a-z]{2}key", None),
        (r"a?key", None),
        (r"key|[0-9]", None),
    ],
)
def test_heads_are_what_every_match_begins_with(expression: str, expected: set[str] | None) -> None:
    assert heads(parse(expression)) == expected


def test_what_may_stand_before_evidence_is_left_out() -> None:
    node = without_lead(parse(r"[\w.-]{0,50}?(?:[ab]*(?:key))=(x)|c*d"))
    assert written(node) == "(?:(?:(?:key))=(x)|d)"


def test_a_match_as_long_as_repeats_are_counted_goes_on() -> None:
    (detector,) = detectors([Pattern("token", "tk-[a-z]+")])
    assert isinstance(detector, Headed)
    text = "see tk-" + "q" * 3000 + " end"
    assert streamed([detector], pieces_of(text, range(0, 3000, 7))) == "see <token> end"
    assert detector.longest < 300


def test_a_pattern_that_may_be_empty_finds_what_is_not() -> None:
    found = detectors([Pattern("ones", "1*")])
    assert streamed(found, list("a11b1")) == whole(found, "a11b1") == "a<ones>b<ones>"


def test_only_the_secret_is_replaced_and_what_stands_in_its_evidence_too() -> None:
    found = detectors(
        [Pattern("key", r"key [a-z@. ]{0,20}= ([0-9]{4})", part=1), Pattern("mail", r"[a-z]+@[a-z]+\.de")]
    )
    text = "the key of me@web.de = 1234!"
    assert streamed(found, list(text)) == whole(found, text) == "the key of <mail> = <key>!"


def test_a_text_is_seen_as_one_byte_for_each_character() -> None:
    text = "\uff16\uff12 \u2013\u00a0\u0663 \u00e9\u6f22\ud800 \U0001f600\u200b."
    assert seen(text) == b"62 - 3 \xe9?? ??."
    (detector,) = detectors([Pattern("number", r"\b[0-9]{2}-[0-9]\b")])
    assert detector.search("\u6f22\u5b57 \u0661\u0662\u2011\u0663 ok") == Span(3, 7, "number", 3)
