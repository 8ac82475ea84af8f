r"""Beginnings of matches: beside languages that are written out, and beside `re` on every continuation."""

import itertools
import re
from collections.abc import Sequence

import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from guards.beginnings import beginnings, bounded, longest, parse, written

SHORT = ["".join(letters) for n in range(6) for letters in itertools.product("ab", repeat=n)]

Language = tuple[str, frozenset[str]]  # an expression, and every word that it matches


def repeated(language: Language, least: int, more: int) -> Language:
    pattern, words = language
    most = least + more
    rows = [words] * most
    found = {"".join(row) for n in range(least, most + 1) for row in itertools.product(*rows[:n])}
    return f"(?:{pattern}){{{least},{most}}}", frozenset(found)


def joined(left: Language, right: Language) -> Language:
    return left[0] + right[0], frozenset(x + y for x in left[1] for y in right[1])


def either(left: Language, right: Language) -> Language:
    return f"({left[0]}|{right[0]})", left[1] | right[1]


ATOMS: Sequence[Language] = [
    ("a", frozenset("a")),
    ("b", frozenset("b")),
    ("[ab]", frozenset("ab")),
    ("(?i:A)", frozenset("aA")),
    ("b?", frozenset(["", "b"])),
    ("a{1,2}", frozenset(["a", "aa"])),
    ("", frozenset([""])),
]
LANGUAGES = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.builds(joined, inner, inner),
        st.builds(either, inner, inner),
        st.builds(repeated, inner, st.integers(0, 1), st.integers(0, 2)),
    ),
    max_leaves=5,
).filter(lambda language: len(language[1]) < 300)


@given(LANGUAGES)
def test_they_are_the_beginnings_of_all_words_and_nothing_else(language: Language) -> None:
    pattern, words = language
    node = parse(pattern)
    begin, itself = re2.compile(beginnings(node)), re2.compile(written(node))
    for text in SHORT:
        assert bool(begin.fullmatch(text)) == any(word.startswith(text) for word in words)
        assert bool(itself.fullmatch(text)) == (text in words)
    assert longest(node) == max(map(len, words))


PATTERNS = st.recursive(
    st.sampled_from(["a", "b", "-", "[ab]", "[^a]", r"\b", r"\B", "a*", "b+", "[ab]{2,3}", "^", "$", "(?m)^", "."]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda options: f"({'|'.join(options)})"),
        st.builds("(?:{}){}".format, inner, st.sampled_from(["?", "*", "+?", "{0,2}", "{2}"])),
    ),
    max_leaves=6,
)
TEXT = st.text("ab-", max_size=5)


def ends(pattern: str, text: str, start: int) -> list[int]:
    """Where a match may end that begins at `start`, asked of `re` once for each place."""
    inside = re.sub(r"\(\?m\)\^", "(?m:^)", pattern).replace("$", r"\Z")
    return [
        end
        for end in range(start, len(text) + 1)
        if re.compile(rf"(?:{inside})(?=.{{{len(text) - end}}}\Z)", re.ASCII | re.DOTALL).match(text, start)
    ]


@given(PATTERNS, TEXT, TEXT)
def test_nothing_that_follows_changes_a_match_before_them(pattern: str, text: str, more: str) -> None:
    held = re2.compile(f"(?:{beginnings(parse(pattern))})\\z").search(text)
    assert held
    for start in range(held.start()):
        assert ends(pattern, text, start) == ends(pattern, text + more, start)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"(?i)key-[0-9]{3}\b", ["K", "key-", "KEY-12", "Key-123"], ["y", "key-1234", "key_"]),
        (r"a(?i)b|c", ["a", "aB", "C"], ["A", "b"]),  # a flag holds to the end of its group
        (r"(?P<name>[]x]+)=", ["]", "x]", "x]="], ["="]),
        (r"\Qa.b\E\d", ["a", "a.", "a.b", "a.b7"], ["axb", "b"]),
        (r"[[:alpha:]\]-]{2}\x{41}", ["q", "]-", "qqA"], ["7", "qqB"]),
        (r"{a}{2}", ["{", "{a", "{a}}"], ["{aa"]),
        (r"(?s:.)\.(?-s:.)", ["\n", "\n.", "\n.x"], ["\n.\n"]),
    ],
)
def test_the_syntax_of_re2_is_read(pattern: str, yes: Sequence[str], no: Sequence[str]) -> None:
    begin = re2.compile(beginnings(parse(pattern)))
    assert all(begin.fullmatch(text) for text in yes)
    assert not any(begin.fullmatch(text) for text in no)


@pytest.mark.parametrize("pattern", ["a)", "(a", "a**", "*", "[a", "(?U)a", "(?=a)", "a\\"])
def test_what_is_not_understood_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"understood|unmatched|missing|repeat|too early"):
        parse(pattern)


def test_repeats_can_be_bounded() -> None:
    node = bounded(parse("x+[ab]{2,}(?:c*d){1,300}(?:e+f)*g{70}"), 64)
    assert written(node) == "(?:x{1,64}[ab]{2,64}(?:c{0,15}d){1,64}(?:e{1,62}f){0,16}g{70,70})"
    assert longest(node) == 64 + 64 + 64 * 16 + 16 * 63 + 70
    assert longest(parse("a|b*")) is None
