"""What a try is made of: the request, its limits, who takes the answer, and the errors of its own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from engine.affinity import Hint
from engine.reading import STREAMING
from engine.replica import Replica
from engine.room import Room
from penstock.errors import EngineError, EngineTimeout


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a try may take, in seconds, how large a whole answer may be, and the room for those of all tries."""

    first_byte_s: float = 30
    first_token_s: float = 600
    stall_s: float = 120
    answer_bytes: int = 64 * 2**20
    room: Room = field(default_factory=Room)


class Asked:
    """A request as it goes to engines. `headers` are whole lines; `deadline` is of the loop's clock."""

    __slots__ = ("body", "deadline", "headers", "hide_usage", "hint", "name", "path", "sent", "streamed", "written")

    def __init__(
        self,
        path: str,
        body: Mapping[str, Any],
        headers: bytes = b"",
        hint: Hint | None = None,
        deadline: float = math.inf,
        written: bytes = b"",
        *,
        hide_usage: bool = False,
        name: str | None = None,
    ) -> None:
        """`written`: the body as JSON, where that is there already. `hide_usage`: it asks for a stream's usage, which
        the caller has not. `name`: every replica knows the model by it, such as one version of an adapter."""
        self.path = path
        self.body = body
        self.headers = headers
        self.hint = hint or Hint()
        self.deadline = deadline
        self.written = written
        self.hide_usage = hide_usage
        self.name = name
        self.sent = False  # to any engine
        self.streamed = path in STREAMING and bool(body.get("stream"))

    def bytes_for(self, replica: Replica) -> bytes:
        """The body that was checked, under the name by which the replica knows the model."""
        name = self.name or replica.model
        if name:
            return orjson.dumps({**self.body, "model": name})
        if not self.written:
            self.written = orjson.dumps(self.body)
        return self.written


class Source(Protocol):
    """Whatever an answer comes from, as far as its speed is concerned. `came`: how many pieces of it have."""

    @property
    def came(self) -> int: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Receiver(Protocol):
    """Takes a stream: whole events, `begin` first and `end` last. `source` can be asked to pause.

    `used` tells, once a try that has begun is over, however it ended, what the engine has counted, None if it never
    said, and the pieces of all that was generated and came, each choice's text and whatever else in lists of its own.
    """

    source: Source | None

    def begin(self, data: bytes) -> None: ...

    def more(self, data: bytes) -> None: ...

    def end(self, data: bytes) -> None: ...

    def used(self, usage: Mapping[str, Any] | None, texts: Sequence[Sequence[str]]) -> None: ...


class NoFirstByte(EngineTimeout):
    """The replica has not begun to answer: another may."""


class DeadlineOver(EngineTimeout):
    """The caller's own time is over."""

    code = "deadline_exceeded"

    def __init__(self) -> None:
        super().__init__("the request's deadline is over (x-request-timeout-s)")


class Outrun(EngineError):
    """Another try for the same request was sooner; it says nothing about the replica."""

    def __init__(self) -> None:
        super().__init__("another try was sooner")
