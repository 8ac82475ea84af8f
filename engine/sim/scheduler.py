"""How many generate at once, and who waits: vLLM's admission, with a slot for each request."""

import asyncio
from collections import deque

from engine.sim.asked import Refused
from engine.sim.moves import Ticket

BUSY = "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."


class Scheduler:
    """`queue`: how many may wait for one of the `slots`; None: any number."""

    def __init__(self, slots: int, queue: int | None) -> None:
        self.slots = slots
        self.queue = queue
        self.running: set[Ticket] = set()
        self.waiting: deque[Ticket] = deque()

    def check(self) -> None:
        """Raises Refused when there is no room for one more."""
        if self.queue is not None and len(self.running) >= self.slots and len(self.waiting) >= self.queue:
            raise Refused(503, BUSY, kind="Service Unavailable")

    def enter(self) -> Ticket:
        ticket = Ticket()
        if len(self.running) < self.slots:
            self._start(ticket)
        else:
            self.waiting.append(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Also for one that still waits."""
        if not ticket.ready:
            self.waiting.remove(ticket)
            return
        self.running.discard(ticket)
        if self.waiting and len(self.running) < self.slots:
            following = self.waiting.popleft()
            self._start(following)
            asyncio.get_running_loop().call_soon(following.call)

    def _start(self, ticket: Ticket) -> None:
        ticket.ready = True
        self.running.add(ticket)
