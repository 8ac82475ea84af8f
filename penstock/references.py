"""Names of registered models: `registry:NAME@ALIAS` or `registry:NAME@VERSION`, read here and nowhere else."""

import re
from dataclasses import dataclass
from typing import Self

SCHEME = "registry:"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,95}")
LARGEST = 2**31 - 1
FORM = "write registry:NAME@ALIAS or registry:NAME@VERSION, such as registry:demo@production or registry:demo@7"


def is_reference(model: str) -> bool:
    return model.startswith(SCHEME)


def check_name(name: str, what: str = "a name") -> str:
    """The name itself. Raises ValueError."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name[:120]!r}: {what} has 1 to 96 of A-Z a-z 0-9 . _ - and does not begin with a dot")
    return name


def check_alias(alias: str) -> str:
    """The alias itself; one of digits alone could be taken for a version. Raises ValueError."""
    if alias.isascii() and alias.isdigit():
        raise ValueError(f"{alias!r}: an alias is not a number, which is a version's")
    return check_name(alias, "an alias")


@dataclass(frozen=True, slots=True)
class Reference:
    """`which` is an alias, or a version by its number."""

    name: str
    which: str | int

    @classmethod
    def of(cls, text: str) -> Self:
        """`registry:demo@7` or `demo@7` -> Reference("demo", 7). Raises ValueError that says how to write it."""
        name, at, which = text.removeprefix(SCHEME).partition("@")
        if not (name and at and which):
            raise ValueError(f"{text[:240]!r} names no version: {FORM}")
        check_name(name)
        if not which.isascii() or not which.isdigit():
            return cls(name, check_alias(which))
        if not 1 <= len(which) <= 10 or not 1 <= int(which) <= LARGEST:
            raise ValueError(f"{text[:240]!r}: versions are counted from 1")
        return cls(name, int(which))

    def __str__(self) -> str:
        return f"{self.name}@{self.which}"
