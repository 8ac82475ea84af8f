"""Where a text ends and another goes on, a prompt and its completion, a thought and its answer: what begins in one and
ends in the other is in no text of either."""

from collections.abc import Sequence

from guards.hold_back import Cut, HoldBack, Replace
from guards.spans import Detector, Span


def as_it_is(span: Span, text: str) -> None:
    """Stands for no match."""


class Seam:
    """A filter before an answer's other one, for as long as a match could go across: of that it gives what `replace`
    says, and everything else as it is. `is_over`: nothing can go across any more. `behind` has read the text before."""

    def __init__(self, behind: "Across", replace: Replace) -> None:
        self._filter = behind.again(lambda span, text: replace(span, text) if behind.is_across(span) else None)

    @property
    def is_over(self) -> bool:
        return self._filter.is_over

    def feed(self, piece: str) -> str:
        passed = self._filter.feed(piece)
        return passed + self._filter.rest() if self.is_over else passed

    def flush(self, cut: Cut | None = None) -> str:
        return self._filter.flush(cut)


class Across(HoldBack):
    """At the end of the text before, such as a prompt."""

    def __init__(self, detectors: Sequence[Detector], prompt: str) -> None:
        super().__init__(detectors, as_it_is, prompt)

    @classmethod
    def behind(cls, other: HoldBack) -> "Across":
        """At the end of another text, as far as that has come."""
        across = cls((), "")
        vars(across).update(vars(other.again(as_it_is)))
        across._sent = across._before + len(across._text)
        return across

    def is_across(self, span: Span) -> bool:
        return span.begins < self._sent

    @property
    def is_over(self) -> bool:
        """Whether all that has begun there is decided."""
        return not self._swallowing and not self._stopped and self._before + self._context >= self._sent

    def rest(self) -> str:
        """What is held, as it is."""
        return self._text[self._context :]
