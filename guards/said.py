"""What one choice of an answer has said and thought, as far as it has come, and what of that is out."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from guards.hold_back import Cut
from guards.looking import Blocked, Spans
from guards.seam import Across, Seam
from guards.skimming import Skimming
from guards.vault import Vault
from guards.verdicts import Verdicts
from penstock.chat import Delta

AGAIN = "\n"
"""Between what was thought before something was said and what is thought afterwards: no match goes across."""
GAP = "\n\n"
"""Between thoughts of which each may have been broken off, as steps tell those of several calls."""
MOST_BEGUN = 12
"""So many characters of what has begun to be a match come out where a thought ends."""


class Filter:
    """A text as it came and as it goes out. `notes` are taken of it beside that. `seam`: that to the prompt or
    the thought which it goes on with, until it is over."""

    __slots__ = ("_unsent", "came", "hold", "notes", "out", "seam")

    def __init__(self, hold: Skimming, notes: Skimming | None, seam: Seam | None = None) -> None:
        self.hold = hold
        self.notes = notes
        self.seam = seam
        self.came: list[str] = []
        self.out: list[str] = []
        self._unsent = ""  # has passed, but what came behind it was blocked

    def skim(self, piece: str) -> str | None:
        """As `Skimming` does."""
        passed = None if self.seam else self.hold.skim(piece)
        if passed is not None:
            self.came.append(piece)
            self.out.append(passed)
            if self.notes:
                self.notes.feed(piece)
        return passed

    def end(self, with_: str) -> str:
        """Of a thought, which may have been broken off."""
        if self.notes:
            self.notes.feed(with_)
        passed = self.hold.end(with_, MOST_BEGUN)
        self.out.append(passed)
        return passed

    def holds(self, piece: str) -> bool:
        """This and nothing else, and there is nothing to note in it yet."""
        return self.hold.pending is piece and (self.notes is None or self.notes.pending is piece)

    def go_on(self, passed: Sequence[str], pending: str) -> None:
        """Behind quiet segments that have gone past it."""
        self.out.append("".join(passed))
        self.hold.go_on(passed[-1], pending)
        if self.notes:
            self.notes.go_on(passed[-1], pending)

    def feed(self, piece: str) -> str:
        self.came.append(piece)
        if self.notes:
            self.notes.feed(piece)
        if self.seam:
            piece = self.seam.feed(piece)
            if self.seam.is_over:
                self.seam = None
        passed = self.hold.feed(piece)
        self.out.append(passed)
        return passed

    def flush(self, cut: Cut | None = None) -> str:
        if self.notes:
            self.notes.flush()
        if self.seam:
            across, self.seam = self.seam.flush(cut), None
            self._unsent = self.hold.feed(across)
        rest = self.hold.flush(cut)
        passed, self._unsent = self._unsent + rest, ""
        self.out.append(passed)
        return passed

    def rest(self) -> str:
        """What may still go out of a choice that is blocked."""
        try:
            return self.flush()
        except Blocked:
            return self.flush()


class Said:
    """One choice. Where one piece waits for the next, all of it a segment that may be quiet, its content's filter is
    not asked: whoever sends the piece when the next one comes, also such a segment, has `came` called with that."""

    __slots__ = "_cut _seam _since again blocked came content has_paused quiet reasoning speaks waiting whole".split()

    def __init__(self, spans: Spans, known: Vault, verdicts: Verdicts, across: Across | None) -> None:
        vault = Vault.beside(known)

        self.whole = partial(spans.filter, vault, verdicts, known or None)
        """Makes a filter for texts that are there at once."""
        skimming, notes = partial(spans.skimming, vault, verdicts, known or None), partial(spans.notes, verdicts)
        self.again: Callable[[], Filter] = lambda: Filter(skimming(), notes(), spans.seam(vault, verdicts, across))
        """Makes one for all of the content."""
        self.content = self.again()
        self.reasoning = Filter(skimming(), notes())
        self._seam = partial(spans.seam, vault, verdicts, known=known or None)
        self._cut = spans.cut
        self.came = self.content.came.append
        self.quiet = spans.lexicon.quiet
        self.waiting: Delta | None = None
        """With nothing but content."""
        self._since = 0  # how many pieces had come before the first that waited
        self.speaks = True
        """Neither blocked nor in thought."""
        self.has_paused = False
        self.blocked: Blocked | None = None

    def wait(self, delta: Delta) -> None:
        """If the filter holds this piece and nothing else."""
        if self.content.holds(delta.content):
            self.waiting, self._since = delta, len(self.content.came) - 1

    def wake(self) -> None:
        """The filter is told what has gone past it."""
        if self.waiting is None:
            return
        passed = self.content.came[self._since : -1]
        if passed:
            self.content.go_on(passed, self.content.came[-1])
        self.waiting = None

    def think(self, piece: str) -> Iterator[str]:
        """What passes of it, thought by thought: one may be blocked when others have passed."""
        if self.has_paused:
            yield self.reasoning.end(AGAIN)
        self.has_paused = self.speaks = False
        for number, text in enumerate(piece.split(GAP)):
            if number:
                self.reasoning.came.append(GAP)
                yield self.reasoning.end(GAP)
            yield self.reasoning.feed(text)

    def pause(self) -> str:
        """It has thought, and now says something: what was held of its thoughts goes before that, and what they have
        begun may still end in what it says."""
        self.speaks = True
        if self.reasoning.hold.held:
            across = Across.behind(self.reasoning.hold)
            self.content.seam = self.content.seam or (None if across.is_over else self._seam(across))
        held = self.reasoning.flush(self.end_of_thought)
        self.has_paused = bool(held)
        return held

    def end_of_thought(self, text: str) -> int:
        """Where it ends, if it may have been broken off: a `Cut`."""
        begun = self._cut(text)
        return begun if len(text) - begun > MOST_BEGUN else len(text)
