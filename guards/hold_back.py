"""A filter for streams: text goes out as soon as nothing that is looked for can begin in it, and no sooner.

What comes out is that of the whole text, however it was cut into pieces: from left to right the leftmost match of all
detectors, then the longest, then that of the first of them, is replaced, and the search goes on behind it. It is held
back, not looked back at: nothing is sent that could still turn out to be the beginning of a match.
"""

import sys
from collections.abc import Callable, Sequence
from copy import copy
from typing import Self

from guards.spans import Detector, Span

PIECE = 2048  # characters searched at a time, so that a long text costs no more than a stream of it

Replace = Callable[[Span, str], str | None]
Cut = Callable[[str], int]
"""Where in a text something begins that more text could have made a match."""


class HoldBack:
    """One text, piece by piece. `replace(span, text)` says what is to stand for a match, None for itself; its offsets
    are those of the whole text. It may raise to end the answer: `flush` (again, if that raised) then gives what stood
    before the match and had not come out, and nothing else comes. After `flush` another text may begin.

    `sent`: how the text begins that is out already: nothing of it comes out again, but a match may begin in it."""

    def __init__(self, detectors: Sequence[Detector], replace: Replace, sent: str = "") -> None:
        self._detectors = detectors
        self._keep_texts = any(hasattr(detector, "fresh") for detector in detectors)
        self._replace = replace
        self._begin()
        if sent:
            self._sent = len(sent)
            self.feed(sent)

    def again(self, replace: Replace) -> Self:
        """Another one that has come as far, whose text goes on by itself."""
        other = copy(self)
        other._replace = replace
        other._next, other._swallowed, other._out = dict(self._next), list(self._swallowed), list(self._out)
        return other

    @property
    def longest(self) -> int:
        """No more characters are ever held, apart from a match that is only waiting for its end."""
        return max((detector.longest for detector in self._detectors), default=0)

    @property
    def held(self) -> int:
        """Characters that were fed and have not come out yet."""
        return len(self._text) - self._context + sum(map(len, self._swallowed))

    def feed(self, piece: str) -> str:
        """What may go out now."""
        if self._stopped:
            return ""
        for i in range(0, len(piece), PIECE):
            self._text += piece[i : i + PIECE]
            self._settle()
        return self._passed()

    def flush(self, cut: Cut | None = None) -> str:
        """The rest, when nothing more comes. With `cut` the text was broken off: what had begun there does not come
        out, but for what stands in the place of matches."""
        if not self._stopped:
            if cut:
                self._cut_at = self._before + cut(self._text)
            self._settle(ended=True)
        rest = self._passed()
        self._begin()
        return rest

    def _begin(self) -> None:
        if self._keep_texts:
            self._detectors = [getattr(detector, "fresh", lambda own=detector: own)() for detector in self._detectors]
        self._text = ""  # what is held, behind at most one character that is not: a word may end between them
        self._context = 0
        self._before = 0  # characters of the whole text before `_text`
        self._next: dict[int, Span] = {}  # by detector, in the whole text: a match that nothing can change any more
        self._sent = 0  # in the whole text: before here nothing comes out
        self._cut_at = sys.maxsize  # in the whole text: from here on nothing comes out that was not replaced
        self._last_end = 0  # in the whole text, of the match before
        self._swallowing: Span | None = None  # a match that goes on as long as its tail does
        self._swallowed: list[str] = []
        self._tail_end = ""  # as much of the tail as `until` could have begun in
        self._out: list[str] = []
        self._stopped: bool = False

    def _passed(self) -> str:
        passed = "".join(self._out)
        self._out.clear()
        return passed

    def _settle(self, ended: bool = False) -> None:
        while True:
            if self._swallowing and not self._swallow(self._swallowing, ended):
                return
            alive = []
            for detector in self._detectors:
                alive.append(len(self._text) if ended else detector.alive(self._text))
                if alive[-1] <= self._context:
                    return
            limit = min(alive, default=len(self._text))
            span = self._leftmost(alive) if limit > self._context else None
            if span is None or span.begins >= self._before + limit:
                self._pass(self._taken(self._before + limit))
                return
            self._pass(self._taken(span.begins))
            if span.begins < span.start:
                self._pass_evidence(self._taken(span.start), span.begins)
            self._swallowed = [self._taken(span.end)]
            self._swallowing = span

    def _pass(self, text: str) -> None:
        """What was taken last, as it is."""
        start = self._before + self._context - len(text)
        self._out.append(text[max(self._sent - start, 0) : max(self._cut_at - start, 0)])

    def _pass_evidence(self, text: str, at: int) -> None:
        """What shows that a match is one but is not to be replaced with it: a text of its own, as it ends here."""
        sent, rest = text[: max(self._sent - at, 0)], text[max(self._sent - at, 0) :]
        inner = HoldBack(self._detectors, lambda span, matched: self._replace(span.moved(at), matched), sent)
        if self._cut_at < at + len(text):
            rest = ""
        self._stopped = True
        try:
            self._out.append(inner.feed(rest))
            self._out.append(inner.flush())
        except BaseException:  # whatever ends the answer, what stood before it goes out
            self._out.append(inner.flush())
            raise
        self._stopped = False

    def _leftmost(self, alive: Sequence[int]) -> Span | None:
        """The next match of those that nothing to come can change."""
        for i, detector in enumerate(self._detectors):
            if i in self._next and self._next[i].begins >= self._last_end:
                continue
            self._next.pop(i, None)
            span = detector.search(self._text, self._context)
            if span and span.begins < alive[i]:
                self._next[i] = span.moved(self._before)
        first = min(self._next, key=lambda i: (self._next[i].begins, -self._next[i].end, i), default=None)
        return None if first is None else self._next[first]

    def _swallow(self, span: Span, ended: bool) -> bool:
        """The match's tail as far as it has come; whether that was its end."""
        held = self._text[self._context :]
        tail = held[: len(held) - len(held.lstrip(span.tail))] if span.tail else ""
        goes_on = bool(span.tail) and len(tail) == len(held) and not ended
        if span.until:
            tail_so_far = self._tail_end + tail
            before, found, _ = tail_so_far.partition(span.until)
            if found:
                tail, goes_on = (before + found)[len(self._tail_end) :], False
            self._tail_end = tail_so_far[1 - len(span.until) :] if len(span.until) > 1 else ""
        self._swallowed.append(self._taken(self._before + self._context + len(tail)))
        if goes_on:
            return False
        text = "".join(self._swallowed)
        self._last_end = span.start + len(text)
        self._swallowing, self._swallowed, self._tail_end = None, [], ""
        replaced = None
        if self._last_end > self._sent:
            self._stopped = True
            replaced = self._replace(Span(span.start, self._last_end, span.kind, span.since), text)
            self._stopped = False
        if replaced is None:
            self._pass(text)
        else:
            self._out.append(replaced)
        return True

    def _taken(self, end: int) -> str:
        """The held text up to `end`, a position in the whole text, which is held no longer."""
        at = end - self._before
        taken = self._text[self._context : at]
        dropped = max(at - 1, 0)
        self._text = self._text[dropped:]
        self._before += dropped
        self._context = at - dropped
        return taken


def found(detectors: Sequence[Detector], text: str) -> list[Span]:
    """Everything that a filter with these detectors would replace in a text that is there at once."""
    spans: list[Span] = []
    filtered = HoldBack(detectors, lambda span, _: spans.append(span))
    filtered.feed(text)
    filtered.flush()
    return spans
