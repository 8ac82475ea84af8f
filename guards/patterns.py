r"""Detectors made of regular expressions, many as one, in time linear in the text (google-re2).

Expressions whose matches all begin with certain literals (`heads.py`) are tried where one stands: an automaton finds
them all in one pass, so hundreds cost what a few do. The others are searched all at once, and only what may be a match
is looked at one by one. What is to be held, the beginnings tell (`beginnings.py`): of the first sort from each head on,
of the others by one search backwards from the end.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ahocorasick
import re2

from guards.beginnings import Group, beginnings, bounded, longest, parse, shortest, written
from guards.heads import heads, without_lead
from guards.seen import ENCODING, fold, seen
from guards.spans import Detector, Span

REPEATS = 256  # what has no upper limit is looked for up to this often
MEMORY_BYTES = 2**23  # of an expression, RE2's own default; of many together more
MANY_BYTES = 2**26
TOKEN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/=~"
FIRST_GROUP = -1


@dataclass(frozen=True)
class Pattern:
    """What text of this kind looks like, in RE2's syntax; letters are ASCII, digits and spaces of any script (`seen`).

    `check` is given what matched and all of the match, and says how many characters of the former are of this kind, 0
    for none. `part` is the group that is to be replaced, 0 for all, FIRST_GROUP for the first that is there. `tail` are
    characters over which a match goes on, up to and with `until`; one that is as long as repeats are counted goes on
    over TOKEN. Of the matches from one place the longest counts, or with `greedy` the one that Perl would choose.
    """

    kind: str
    expression: str
    check: Callable[[str, str], int] | None = None
    part: int = 0
    tail: str = ""
    until: str = ""
    greedy: bool = False

    @cached_property
    def node(self) -> Group:
        node = parse(self.expression)
        bound = bounded(without_lead(node) if self.part else node, REPEATS)
        assert isinstance(bound, Group)
        return bound

    @cached_property
    def compiled(self) -> Any:
        return compiled(written(self.node), greedy=self.greedy)

    @cached_property
    def beginning(self) -> Any:
        return compiled(f"{beginnings(self.node)}\\z")

    def at(self, raw: bytes, begin: int) -> Span | None:
        """What begins here."""
        match = self.compiled.match(raw, begin)
        return self._span(match, raw) if match else None

    def _span(self, match: Any, raw: bytes) -> Span | None:
        begin, stop = match.span()
        group = self.part if self.part >= 0 else next((i for i, part in enumerate(match.groups(), 1) if part), 0)
        start, end = match.span(group)
        valid = end - start
        if self.check:
            valid = self.check(raw[start:end].decode(ENCODING), raw[begin:stop].decode(ENCODING))
        if valid <= 0:
            return None
        tail = self.tail or TOKEN * (stop - begin >= REPEATS)
        if start + valid < end:
            tail = ""
        return Span(start, start + valid, self.kind, begin, tail, self.until if tail else "")


def detectors(patterns: Sequence[Pattern]) -> list[Detector]:
    fold()  # it takes a tenth of a second, which no request shall wait for
    headed = [pattern for pattern in patterns if heads(pattern.node)]
    others = [pattern for pattern in patterns if not heads(pattern.node)]
    return [*([Headless(others)] if others else []), *([Headed(headed)] if headed else [])]


def leftmost(spans: Iterable[Span]) -> Span | None:
    return min(spans, key=lambda span: (span.begins, -span.end), default=None)


class Headless:
    """Finds any of these, all at once."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.patterns = patterns
        self.kinds = tuple(dict.fromkeys(pattern.kind for pattern in patterns))
        self.longest = max(longest(pattern.node) or 0 for pattern in patterns)
        self.shortest = min(shortest(pattern.node) for pattern in patterns)
        self._any = compiled(
            either(written(pattern.node, captures=False) for pattern in patterns), memory_bytes=MANY_BYTES
        )
        begin = either(beginnings(pattern.node) for pattern in patterns)
        self._begin = compiled(f"(?:{begin})\\z", memory_bytes=MANY_BYTES)

    def search(self, text: str, start: int = 0) -> Span | None:
        if len(text) - start < self.shortest:
            return None
        raw = seen(text)
        while start < len(raw) and (match := self._any.search(raw, start)):
            start = match.start()
            if span := leftmost(span for pattern in self.patterns if (span := pattern.at(raw, start))):
                return span
            start += 1
        return None

    def alive(self, text: str) -> int:
        return int(self._begin.search(seen(text)).start())


class Headed:
    """Finds any of these, which all begin with literals."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.patterns = patterns
        self.kinds = tuple(dict.fromkeys(pattern.kind for pattern in patterns))
        self.longest = max(longest(pattern.node) or 0 for pattern in patterns)
        self.shortest = min(shortest(pattern.node) for pattern in patterns)
        self._beginnings = [pattern.beginning for pattern in patterns]  # made now, so that it is told if one cannot be
        by_head: dict[str, list[int]] = {}
        for i, pattern in enumerate(patterns):
            for head in heads(pattern.node) or ():
                by_head.setdefault(head, []).append(i)
        self._heads = ahocorasick.Automaton()
        for head, which in by_head.items():
            self._heads.add_word(head, (len(head), which))
        self._heads.make_automaton()
        self._unfinished = {head[:length] for head in by_head for length in range(1, len(head))}
        self._most = max(map(len, by_head)) - 1
        self._ends = {head[-3:] for head in self._unfinished}
        """Characters that tell of most texts that no head has begun at their end."""

    def search(self, text: str, start: int = 0) -> Span | None:
        if len(text) - start < self.shortest:
            return None
        raw = seen(text)
        found: list[Span] = []
        for begin, which in self._standing(lowered(raw), start):
            if found and begin > found[0].begins:
                break
            found += (span for i in which if (span := self.patterns[i].at(raw, begin)))
        return leftmost(found)

    def alive(self, text: str) -> int:
        raw = seen(text)
        lower = lowered(raw)
        limit = len(raw)
        ends = self._ends
        if lower[-3:] in ends or lower[-2:] in ends or lower[-1:] in ends:
            starts = range(max(limit - self._most, 0), limit)
            limit = next((at for at in starts if lower[at:] in self._unfinished), limit)
        for begin, which in self._standing(lower, 0):
            if begin >= limit:
                break
            if any(self._beginnings[i].match(raw, begin) for i in which):
                return begin
        return limit

    def _standing(self, lower: str, start: int) -> Sequence[tuple[int, Sequence[int]]]:
        """Where heads stand, from left to right, and of which patterns."""
        found = list(self._heads.iter(lower, start))
        return sorted((end + 1 - length, which) for end, (length, which) in found) if found else ()


def lowered(raw: bytes) -> str:
    return raw.lower().decode(ENCODING)


def compiled(expression: str, greedy: bool = False, memory_bytes: int = MEMORY_BYTES) -> Any:
    """For bytes as `seen` gives them. Raises ValueError where RE2 does not take it."""
    try:
        return re2.compile(expression.encode(ENCODING), options(greedy, memory_bytes))
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else error
        raise ValueError(f"{expression[:200]!r}: {reason}") from error


def either(expressions: Iterable[str]) -> str:
    return "|".join(f"(?:{expression})" for expression in expressions)


def options(greedy: bool, memory_bytes: int) -> Any:
    chosen = re2.Options()
    chosen.encoding = re2.Options.Encoding.LATIN1
    chosen.longest_match = not greedy
    chosen.max_mem = memory_bytes
    chosen.log_errors = False
    return chosen
