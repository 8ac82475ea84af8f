"""Guards that look for what has a place in a text, and so can be masked: personal data."""

from collections.abc import Sequence

from pydantic import Field, field_validator

from guards.guard import Action, Masking
from guards.personal import KINDS, personal
from guards.spans import Detector
from penstock.config import nearest
from penstock.steps import Parts


class Pii(Masking):
    """Personal data with a form of its own: cards, accounts, phone numbers, addresses of mail and of machines."""

    action: Action = Field("mask", description="block, mask or flag")
    kinds: tuple[str, ...] = Field(KINDS, min_length=1, description="what is looked for")

    @field_validator("kinds")
    @classmethod
    def kinds_are_known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        return known(kinds, KINDS)

    def detectors(self, parts: Parts) -> Sequence[Detector]:
        return personal(self.kinds)


def known(given: tuple[str, ...], names: Sequence[str]) -> tuple[str, ...]:
    """Raises ValueError for one that is not among `names`."""
    for name in given:
        if name not in names:
            raise ValueError(f"unknown kind {name!r}{nearest(name, list(names))}; there are {', '.join(names)}")
    return given
