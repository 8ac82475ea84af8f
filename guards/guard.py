"""What a guard is: where it looks, what becomes of what it finds, and two ways of looking.

A detector finds spans of a text, also while it streams. A look is at whole texts: all those of a request, or a whole
answer; it may ask others, and so take time, or fail.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from pydantic import Field

from guards.spans import Detector
from penstock.chat import ChatRequest, Choice
from penstock.steps import Around, OnInput, Parts, Step

T = TypeVar("T")

ASIDE_CHARS = 5_000
"""From here on a thread looks: the dearest texts cost 94 µs a character, and no other request is to wait."""

Action = Literal["block", "mask", "flag"]
Unmasked = Literal["block", "flag"]
"""The actions of those that look at whole texts, and so find no place that could be masked."""
Direction = Literal["input", "output"]
Where = Literal["input", "output", "both"]


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look is at. `request` is None for one that generates nothing; `answer` is there on the way out."""

    direction: Direction
    texts: Sequence[str]
    """Of the request in its order; of an answer its reasoning, its content, the strings of its tool calls."""
    request: ChatRequest | None = None
    answer: Choice | None = None


@dataclass(frozen=True, slots=True)
class Opinion:
    """`kinds`: what is the matter, and how sure that is, from 0 to 1; empty where nothing is. `texts`: those that are
    to stand in the place of the ones looked at, of a guard that masks."""

    kinds: Mapping[str, float] = field(default_factory=dict)
    texts: Sequence[str] | None = None
    refuses: bool = False
    """Whatever its guard's action is, nothing passes."""


NOTHING = Opinion()
Look = Callable[[Looked], Awaitable[Opinion]]


async def aside(chars: int, work: Callable[[], T]) -> T:
    """What `work` returns, which looks at so many characters."""
    return await asyncio.to_thread(work) if chars > ASIDE_CHARS else work()


def chars_to_look(chars: int, detectors: Iterable[Detector]) -> int:
    """How many, for `aside`: those that need a whole text ask a model, and so look aside at any."""
    return sys.maxsize if any(detector.longest == sys.maxsize for detector in detectors) else chars


class Guard(Step):
    """Options that all guards have."""

    action: Action = Field(
        "block",
        description="block: the request is refused, or the answer ends; mask: placeholders stand for what was found; "
        "flag: it is only logged and counted",
    )
    on: Where = Field("both", description="which way it looks: at what is asked, at what is answered")
    fail: Literal["closed", "open"] = Field(
        "closed", description="what happens where it cannot look: the request is refused (503), or passes"
    )

    def detectors(self, parts: Parts) -> Sequence[Detector]:
        """Made once. Raises StartError for options that cannot be used."""
        return ()

    def look(self, parts: Parts) -> Look | None:
        """Made once, too."""
        return None

    @property
    def unmasks(self) -> bool:
        """Whether what it masks in a request is put back into the answer."""
        return False

    @property
    def patience_s(self) -> float | None:
        """How long one look may take."""
        return None

    @property
    def target(self) -> str | None:
        """Whom it asks, as the log names it."""
        return None

    def around(self, parts: Parts) -> Around:
        return self.alone().around(parts)

    def on_input(self, parts: Parts) -> OnInput | None:
        return self.alone().on_input(parts)

    def alone(self) -> Step:
        """A policy of this guard and no other."""
        from guards.policy import Policy

        name = type(self).__name__.lower()
        return Policy(name=name, guards=((name, self),))


class Masking(Guard):
    """One that finds places."""

    unmask: bool = Field(
        False, description="what was masked in the request stands in the answer again, where the model repeats it"
    )

    @property
    def unmasks(self) -> bool:
        return self.unmask and self.action == "mask"


class Asking(Guard):
    """One that asks somebody else."""

    action: Unmasked = Field(
        "block", description="block: the request is refused, or the answer ends; flag: it is only logged and counted"
    )
    timeout_s: float = Field(10, gt=0, le=600, description="how long it may take; then it has failed")

    @property
    def patience_s(self) -> float | None:
        return self.timeout_s
