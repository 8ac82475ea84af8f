"""What one choice of an answer has said and thought, as far as it has come, and what of that is out."""

from collections.abc import Callable, Sequence
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


class Filter:
    """A text as it came and as it goes out. `notes` are taken of it beside that. `seam`: that to the prompt which it
    goes on with, until it is over."""

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

    def part(self) -> str:
        """No match goes across from here on."""
        passed = self.hold.feed(AGAIN)
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

    __slots__ = "_since again blocked came content has_paused quiet reasoning speaks waiting whole".split()

    def __init__(self, spans: Spans, known: Vault, verdicts: Verdicts, across: Across | None) -> None:
        vault = Vault.beside(known)

        self.whole = partial(spans.filter, vault, verdicts, known or None)
        """Makes a filter for texts that are there at once."""
        skimming, notes = partial(spans.skimming, vault, verdicts, known or None), partial(spans.notes, verdicts)
        self.again: Callable[[], Filter] = lambda: Filter(skimming(), notes(), spans.seam(vault, verdicts, across))
        """Makes one for all of the content."""
        self.content = self.again()
        self.reasoning = Filter(skimming(), notes())
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

    def think(self, piece: str) -> str:
        apart = self.reasoning.part() if self.has_paused else ""
        self.has_paused = self.speaks = False
        return apart + self.reasoning.feed(piece)

    def pause(self) -> str:
        """It has thought, and now says something: what was held of its thoughts goes before that."""
        self.speaks = True
        held = self.reasoning.flush()
        self.has_paused = bool(held)
        return held
