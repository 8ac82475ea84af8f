"""Most of a stream is words in which nothing is found: they pass without another look at each.

A segment begins with a space. It is quiet if nothing in it is a match, and no match can begin in it once a space has
come behind it, whatever comes then and whatever stood before. That is asked of the detectors once for each segment, and
then remembered: words come again. When a piece comes that begins with a space, the segment before passes if it is
quiet; else the piece becomes a part of it (`2026` may be the beginning of a card's number, `2026 was` is not). If
that is not quiet either, the hold-back is woken and takes what is pending. What comes out is the same, at most one
segment later.
"""

from collections.abc import Sequence
from functools import lru_cache
from time import perf_counter
from typing import Self

from guards.hold_back import Cut, HoldBack, Replace
from guards.spans import Detector

BEFORE = ("a", "\n")
"""A word, and the beginning of a line: all that an assertion about what stands before can tell apart."""
LONGEST = 40
"""Characters of a segment."""
KNOWN = 50_000
PLACEHOLDER = "<"
"""Never quiet: each request has placeholders of its own."""


class Lexicon:
    """What is known to be quiet for some detectors, by segment."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.known: dict[str, bool] = {}
        self.quiet: set[str] = set()
        """Those of `known` that are."""
        self._detectors = detectors

    def is_quiet(self, segment: str) -> bool:
        """Asked once: `known` has it from then on."""
        if len(self.known) >= KNOWN:
            self.known.clear()
            self.quiet.clear()
        quiet = self.known[segment] = PLACEHOLDER not in segment and self._look(segment)
        if quiet:
            self.quiet.add(segment)
        return quiet

    def _look(self, segment: str) -> bool:
        for before in BEFORE:
            text = f"{before}{segment} "
            end = len(text) - 1
            for detector in self._detectors:
                if detector.alive(text) < end or detector.search(text, len(before)) is not None:
                    return False
        return True


@lru_cache(maxsize=32)
def lexicon(detectors: tuple[Detector, ...]) -> Lexicon:
    """The same for all policies that look for the same: what one has learned, all know."""
    return Lexicon(detectors)


class Skimming(HoldBack):
    """`seconds`: what was spent on more than that."""

    def __init__(self, detectors: Sequence[Detector], replace: Replace, lexicon: Lexicon) -> None:
        super().__init__(detectors, replace)
        self._lexicon = lexicon
        self._known = lexicon.known
        self._segment: str | None = None
        """As far as it has come; empty before one begins; None while the hold-back is awake."""
        self._grown = False  # by a piece that began with a space
        self._pending = ""
        self._passed_before = ""
        self.seconds = 0.0

    @property
    def held(self) -> int:
        return len(self._pending) if self._segment else super().held

    def skim(self, piece: str) -> str | None:
        """What may go out now; None if it has to be fed. `piece` is not empty."""
        segment = self._segment
        if segment is None or len(piece) > LONGEST:
            return None
        if piece[0] == " ":
            quiet = not segment or self._known.get(segment)
            if quiet is None:
                quiet = self._lexicon.is_quiet(segment)
            if quiet:
                passed = self._pending
                if passed:
                    self._passed_before = passed
                self._segment = self._pending = piece
                self._grown = False
                return passed
            if self._grown:
                return None
            self._grown = True
        if not segment or len(segment) > LONGEST:
            return None
        self._segment = segment + piece
        self._pending += piece
        return ""

    @property
    def pending(self) -> str:
        """The segment that waits for the next; empty where the hold-back is awake."""
        return self._pending

    def go_on(self, before: str, pending: str) -> None:
        """Quiet segments have passed without being skimmed, `before` the last of them; now this one waits."""
        self._passed_before = before
        self._segment = self._pending = pending
        self._grown = False
        if len(pending) > LONGEST:
            self._wake()

    def feed(self, piece: str) -> str:
        passed = self.skim(piece) if piece else ""
        if passed is not None:
            return passed
        began = perf_counter()
        self._wake()
        passed = super().feed(piece)
        self._rest()
        self.seconds += perf_counter() - began
        return passed

    def end(self, with_: str, most: int) -> str:
        """`with_` is fed, behind which another text may stand instead of this one's rest: of what has begun to be a
        match, and is none now, no more than `most` characters come out."""
        self._wake()
        begun = "" if self._swallowing else self._text[self._context :]
        passed = super().feed(with_)
        self._rest()
        return passed[len(begun) :] if len(begun) > most and passed.startswith(begun) else passed

    def flush(self, cut: Cut | None = None) -> str:
        self._wake()
        passed = super().flush(cut)
        self._pending = self._passed_before = ""
        return passed

    def again(self, replace: Replace) -> Self:
        self._wake()
        return super().again(replace)

    def _wake(self) -> None:
        """What has passed meanwhile was of no interest; the hold-back needs no more of it than the last character."""
        if self._segment:
            last = self._passed_before[-1:]
            self._before += len(self._text) - len(last)
            self._text = last + self._pending
            self._context = len(last)
            self._pending = ""
        self._segment = None

    def _rest(self) -> None:
        """Whether from here on segments may pass: everything before is decided, and nothing is held but the beginning
        of a quiet one."""
        if self._swallowing or self._stopped or any(span.begins >= self._last_end for span in self._next.values()):
            return
        held = self._text[self._context :]
        self._passed_before = self._text[: self._context]
        self._grown = False
        if not held:
            self._segment = ""
        elif self._context and self._text[0] == " " and len(self._text) <= LONGEST:
            self._segment = self._text
            self._pending = held
