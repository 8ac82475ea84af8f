"""What a detector is, and what it finds.

A detector never looks at time or at pieces: it is asked about a text, and it says how far its answer can still change
when more text comes. `hold_back.py` makes of that a filter for streams.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Span:
    """`text[start:end]` is of this kind, such as `email` or `aws_access_key`. Offsets are characters.

    `since`, if given, is where the match began of which this is a part: in `password = hunter2`, the secret begins at
    11, its evidence at 0. The run of characters of `tail` that follows belongs to it too, however long it is, or up to
    and with `until` if that comes in it.
    """

    start: int
    end: int
    kind: str
    since: int | None = None
    tail: str = ""
    until: str = ""

    @property
    def begins(self) -> int:
        return self.start if self.since is None else self.since

    def moved(self, by: int) -> "Span":
        since = None if self.since is None else self.since + by
        return Span(self.start + by, self.end + by, self.kind, since, self.tail, self.until)


class Detector(Protocol):
    """Looks at what stands in the text and at one character before `start`, and no further back. One that knows more of
    its text than it is asked about has `fresh()`, too: another one, for another text."""

    @property
    def kinds(self) -> Sequence[str]: ...

    @property
    def longest(self) -> int:
        """No match has more characters, its tail apart, and nothing longer is ever held for it."""
        ...

    def search(self, text: str, start: int = 0) -> Span | None:
        """The match that begins leftmost at or after `start`, evidence included; of these the one that ends last."""
        ...

    def alive(self, text: str) -> int:
        """The earliest position at which a match could begin that more text after `text` could make, lengthen or
        unmake; `len(text)` if there is none. What `search` says of a match that begins before it stays true."""
        ...
