"""What was masked in one request: each value's placeholder, and the value again where the answer repeats it."""

import re
from collections.abc import Callable, Iterable, Sequence

from guards.spans import Span

WRITTEN = re.compile(r"<[A-Z][A-Z0-9_]*_[0-9]+>")
NOT_IN_NAMES = re.compile(r"[^A-Z0-9]+")
KIND = "placeholder"


class Vault:
    """Placeholders such as `<EMAIL_1>`: the same value of a kind has the same one. `given()`: the texts of the request;
    what a caller has written there in this form is no placeholder of these.

    It is a detector (`guards/spans.py`) of the placeholders whose values are to be put back."""

    kinds: Sequence[str] = (KIND,)

    def __init__(self, given: Callable[[], Iterable[str]] = tuple) -> None:
        self._given = given
        self._taken: set[str] | None = None
        self._counts: dict[str, int] = {}
        self._placeholders: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}

    @classmethod
    def beside(cls, other: "Vault") -> "Vault":
        """One that knows the same placeholders, and whose new ones the other does not learn of: each choice of an
        answer has its own, or their numbers would tell which one was faster. It puts nothing back that is new."""
        vault = cls(other._given)
        vault._taken = other._taken
        vault._counts = dict(other._counts)
        vault._placeholders = dict(other._placeholders)
        return vault

    def placeholder(self, kind: str, value: str, *, unmask: bool = False) -> str:
        found = self._placeholders.get((kind, value))
        if found is None:
            name = NOT_IN_NAMES.sub("_", kind.upper()).strip("_") or "TEXT"
            name = name if name[0].isalpha() else f"N{name}"
            found = self._placeholders[kind, value] = self._next(name)
        if unmask:
            self._values[found] = value
        return found

    def _next(self, name: str) -> str:
        if self._taken is None:
            self._taken = {found[0] for text in self._given() for found in WRITTEN.finditer(text)}
        while True:
            number = self._counts[name] = self._counts.get(name, 0) + 1
            if (placeholder := f"<{name}_{number}>") not in self._taken:
                return placeholder

    def value(self, placeholder: str) -> str:
        return self._values[placeholder]

    def __bool__(self) -> bool:
        """Whether there is anything to put back."""
        return bool(self._values)

    @property
    def longest(self) -> int:
        return max(map(len, self._values), default=0)

    def search(self, text: str, start: int = 0) -> Span | None:
        at = text.find("<", start)
        while at >= 0:
            end = text.find(">", at) + 1
            if end and text[at:end] in self._values:
                return Span(at, end, KIND)
            at = text.find("<", at + 1)
        return None

    def alive(self, text: str) -> int:
        at = text.rfind("<")
        if at >= 0:
            tail = text[at:]
            if any(len(tail) < len(known) and known.startswith(tail) for known in self._values):
                return at
        return len(text)
