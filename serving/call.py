"""A request under way."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.callers import LOCAL, Caller
from penstock.errors import PenstockError
from serving.admission import Ticket
from serving.exchange import Exchange
from serving.relay import Relayed

if TYPE_CHECKING:
    from serving.app import Gateway


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
        source = self.exchange.source
        return source.came if source else 0
