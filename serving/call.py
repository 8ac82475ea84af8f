"""A request under way."""

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import getrandbits
from typing import TYPE_CHECKING

from penstock.callers import LOCAL, Caller
from penstock.errors import PenstockError
from serving.admission import Ticket
from serving.exchange import Exchange
from serving.relay import Relayed

if TYPE_CHECKING:
    from serving.app import Gateway

GIVEN_ID = re.compile(rb"[\w.\-]{1,128}")


@dataclass(eq=False, slots=True)
class Call:
    """A request under way: what the access log will say of it, and what it waits for, a relay or a task."""

    gateway: "Gateway"
    exchange: Exchange
    name: str
    caller: Caller = LOCAL
    model: str = ""
    error: PenstockError | None = None
    relayed: Relayed | None = None
    ticket: Ticket | None = None
    task: asyncio.Task[None] | None = None
    began: float = field(default_factory=time.perf_counter)

    def told(self, error: Exception | None) -> None:
        self.gateway.told(self, error)

    def gone(self) -> None:
        self.gateway.stop(self)

    def came(self) -> int:
        """How many pieces of the answer have come."""
        source, cost = self.exchange.source, self.exchange.cost
        if source:
            return source.came
        return 0 if cost is None else cost.meter.came if cost.meter else sum(map(len, cost.texts))


def id_of(headers: Mapping[bytes, bytes]) -> str:
    """The caller's own id where it is harmless, else a new one."""
    given = headers.get(b"x-request-id")
    return given.decode() if given and GIVEN_ID.fullmatch(given) else f"req_{getrandbits(128):032x}"
