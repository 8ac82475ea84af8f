"""How many bytes of answers are held at once, of several requests together."""

from dataclasses import dataclass


@dataclass(slots=True, weakref_slot=True, eq=False)
class Room:
    """Who takes what there was no room for gives up; those who were there before go on."""

    most_bytes: int = 2**30
    held: int = 0

    def take(self, size_bytes: int) -> bool:
        """Whether there was room. It is held in either case, until it is given back."""
        self.held += size_bytes
        return self.held <= self.most_bytes

    def give_back(self, size_bytes: int) -> None:
        self.held -= size_bytes
