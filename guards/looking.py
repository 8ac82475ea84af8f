"""Guards at work: what they find, and what becomes of it."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from guards.guard import NOTHING, Direction, Guard, Look, Looked, Opinion, aside, chars_to_look
from guards.hold_back import Cut, HoldBack, Replace
from guards.seam import Across, Seam
from guards.skimming import Skimming, lexicon
from guards.spans import Detector, Span
from guards.vault import KIND, Vault
from guards.verdicts import Verdicts, took
from penstock.errors import BudgetSpent, GuardFailed, PenstockError
from penstock.steps import Parts

log = logging.getLogger(__name__)

SPANS = "spans"
"""How metrics name all guards that look for places: they look together."""


class Blocked(Exception):
    """A guard lets nothing pass. Bears no text."""

    def __init__(self, guard: str, kinds: Sequence[str]) -> None:
        super().__init__(f"{guard}: {', '.join(kinds)}")
        self.guard = guard
        self.kinds = kinds


@dataclass(frozen=True, slots=True)
class Watch:
    """A guard as it is used; `of` makes it, once."""

    name: str
    guard: Guard
    detectors: Sequence[Detector]
    look: Look | None

    @classmethod
    def of(cls, name: str, guard: Guard, parts: Parts) -> "Watch":
        detectors = guard.detectors(parts)
        if guard.fail == "open":
            detectors = [Tolerant(name, detector) for detector in detectors]
        return cls(name, guard, detectors, guard.look(parts))

    @property
    def decides(self) -> bool:
        """Whether what it thinks of a whole text can change what becomes of it."""
        return self.look is not None and self.guard.action != "flag"


class Tolerant:
    """A detector that finds nothing where it fails."""

    def __init__(self, name: str, detector: Detector) -> None:
        self.kinds = detector.kinds
        self.longest = detector.longest
        self._name = name
        self._detector = detector

        if hasattr(detector, "fresh"):
            self.fresh = lambda: Tolerant(name, detector.fresh())

    def search(self, text: str, start: int = 0) -> Span | None:
        try:
            return self._detector.search(text, start)
        except Exception as error:  # whatever it is, `fail: open` asks that it be done without
            self._failed(error)
            return None

    def alive(self, text: str) -> int:
        try:
            return self._detector.alive(text)
        except Exception as error:  # whatever it is, `fail: open` asks that it be done without
            self._failed(error)
            return len(text)

    def _failed(self, error: Exception) -> None:
        log.error("the guard %s fails, and lets pass: %s", self._name, type(error).__name__)


class Spans:
    """What guards look for that has a place in a text: all together, from left to right."""

    def __init__(self, watches: Sequence[Watch], direction: Direction) -> None:
        self.watches = [watch for watch in watches if watch.detectors]
        self.direction = direction
        flagging = [watch for watch in self.watches if watch.guard.action == "flag"]
        hiding = [watch for watch in self.watches if watch.guard.action != "flag"]
        self._flagging_by_kind, self._hiding_by_kind = kinds_of(flagging), kinds_of(hiding)
        self._flagged, self._hidden = detectors_of(flagging), detectors_of(hiding)
        self.detectors = [*self._hidden, *self._flagged]
        self.lexicon = lexicon(tuple(self.detectors))

    def skimming(self, vault: Vault, verdicts: Verdicts, known: Vault | None = None) -> Skimming:
        """The same as `filter`, for a text that streams, and without notes."""
        detectors = [known, *self._hidden] if known else self._hidden
        return Skimming(detectors, self._replacing(vault, verdicts, known), self.lexicon)

    def notes(self, verdicts: Verdicts) -> Skimming | None:
        """Beside it: tells what is only flagged, which hides nothing, and nothing from the others."""
        return Skimming(self._flagged, self._noting(verdicts), self.lexicon) if self._flagged else None

    def cut(self, text: str) -> int:
        """Where something begins of which more text could have made what must not come out."""
        return min([len(text), *(detector.alive(text) for detector in self._hidden)])

    def filter(self, vault: Vault, verdicts: Verdicts, known: Vault | None = None) -> "Feeds":
        """For one text. `vault` takes what is masked; the placeholders of `known` are put back."""
        detectors = [known, *self._hidden] if known else self._hidden
        hold = HoldBack(detectors, self._replacing(vault, verdicts, known))
        return Noting(hold, HoldBack(self._flagged, self._noting(verdicts))) if self._flagged else hold

    async def across(self, prompt: str, verdicts: Verdicts) -> Across | None:
        """Where an answer begins that goes on with this prompt; None where nothing can have begun in that. Raises
        GuardFailed."""
        if not prompt or not self._hidden:
            return None
        try:
            read = await aside(chars_to_look(len(prompt), self._hidden), lambda: Across(self._hidden, prompt))
        except Exception as error:  # a detector of any kind: what nobody has looked at does not pass
            raise unforeseen(verdicts.policy, error) from None
        return None if read.is_over else read

    def seam(self, vault: Vault, verdicts: Verdicts, across: Across | None, known: Vault | None = None) -> Seam | None:
        return Seam(across, self._replacing(vault, verdicts, known)) if across else None

    def _replacing(self, vault: Vault, verdicts: Verdicts, known: Vault | None) -> Replace:
        by_kind = self._hiding_by_kind

        def replace(span: Span, text: str) -> str | None:
            if known and span.kind == KIND:
                return known.value(text)
            watch = by_kind[span.kind]
            action = watch.guard.action
            verdicts.found(watch.name, self.direction, action, span.kind)
            if action == "block":
                raise Blocked(watch.name, [span.kind])
            return vault.placeholder(span.kind, text, unmask=watch.guard.unmasks and self.direction == "input")

        return replace

    def _noting(self, verdicts: Verdicts) -> Replace:
        by_kind = self._flagging_by_kind

        def note(span: Span, text: str) -> None:
            verdicts.found(by_kind[span.kind].name, self.direction, "flag", span.kind)

        return note


def detectors_of(watches: Sequence[Watch]) -> list[Detector]:
    return [detector for watch in watches for detector in watch.detectors]


def kinds_of(watches: Sequence[Watch]) -> Mapping[str, Watch]:
    """The first that finds one."""
    return {kind: watch for watch in reversed(watches) for detector in watch.detectors for kind in detector.kinds}


class Feeds(Protocol):
    def feed(self, piece: str) -> str: ...

    def flush(self, cut: Cut | None = None) -> str: ...


class Noting:
    """A filter, and beside it one that only takes notes."""

    def __init__(self, hold: HoldBack, notes: HoldBack) -> None:
        self._hold = hold
        self._notes = notes

    def feed(self, piece: str) -> str:
        self._notes.feed(piece)
        return self._hold.feed(piece)

    def flush(self, cut: Cut | None = None) -> str:
        self._notes.flush()
        return self._hold.flush(cut)


def cleaning(made: Feeds, cut: Cut | None = None) -> Callable[[str], str]:
    """For texts that are there at once, one after the other; with `cut`, that were broken off. Raises Blocked."""

    def clean(text: str) -> str:
        return made.feed(text) + made.flush(cut)

    return clean


async def opinion(watch: Watch, looked: Looked, verdicts: Verdicts) -> Opinion:
    """Raises Blocked, or GuardFailed where the guard could not look and is not to be done without."""
    found = await asked(watch, looked, verdicts)
    action = "block" if found.refuses else watch.guard.action
    for kind in found.kinds:
        verdicts.found(watch.name, looked.direction, action, kind)
    if found.kinds and action == "block":
        raise Blocked(watch.name, sorted(found.kinds))
    return found


async def asked(watch: Watch, looked: Looked, verdicts: Verdicts) -> Opinion:
    """What it thinks. Raises GuardFailed, too; and BudgetSpent, whatever the guard says of failures: the caller's own
    limits switch no guard off."""
    assert watch.look
    began = perf_counter()
    try:
        async with asyncio.timeout(watch.guard.patience_s):
            return await watch.look(looked)
    except Exception as error:  # whatever it is, what nobody has looked at does not pass as looked at
        verdicts.failed(watch.name, looked.direction, error, watch.guard.target)
        if isinstance(error, BudgetSpent):
            raise
        if watch.guard.fail == "open":
            return NOTHING
        raise failed(verdicts.policy, watch.name) from None
    finally:
        took(watch.name, looked.direction, perf_counter() - began)


def failed(policy: str, guard: str) -> GuardFailed:
    return GuardFailed(f"the guard {policy}/{guard} could not look at this, so it does not pass: try again later")


def unforeseen(policy: str, error: Exception) -> PenstockError:
    """What a detector did that it should not; its message may have text in it."""
    log.error("a guard of %s failed: %s", policy, type(error).__name__)
    return failed(policy, SPANS)
