"""A model's places, and those who wait for one: bounded in number and in time, fair, the doomed refused first.

A place is free when fewer requests run than `concurrent` says. With Redis it says so, for every gateway together; each
process keeps its own queue and asks for the next place when its turn among the processes has come.
"""

import asyncio
import math
from collections import Counter
from typing import Protocol
from uuid import uuid4

from engine.asked import DeadlineOver
from penstock import metrics
from penstock.callers import Quota
from penstock.config import Model
from penstock.errors import Overloaded
from serving.accounts import Account
from serving.fair_queue import FairQueue, Waiter

ASK_AGAIN_S = 0.02


class Places(Protocol):
    """Whoever gives places to all processes. None: it does not answer now."""

    @property
    def is_up(self) -> bool: ...

    goes_on_without: bool

    async def take(self, line: "Line", place: str) -> bool | None: ...

    async def step_back(self, line: "Line") -> None: ...

    def give_back(self, line: "Line", place: str) -> None: ...


class Line:
    """`running` are those of this process. Times are of the loop's clock."""

    def __init__(self, name: str, model: Model, places: Places | None = None) -> None:
        self.name = name
        self.shared = places
        self.account = Account()
        self.running = 0
        self.queue = FairQueue()
        self._asking: asyncio.Task[None] | None = None
        self.change(model)

    def change(self, model: Model) -> None:
        """Other limits, for those who wait too."""
        self.quota = Quota(rpm=model.rpm, tpm=model.tpm)
        self.places = model.concurrent
        self.most_waiting = model.queue
        self.patience_s = model.queue_s
        if self.queue:
            self.advance()

    @property
    def is_free(self) -> bool:
        """Whether a request need not wait, as far as this process knows."""
        return self.places is None or (not self.queue and self.running < self.places)

    @property
    def has_room(self) -> bool:
        """Whether one more may wait."""
        return len(self.queue) < self.most_waiting

    def wait_s(self, tenant: str, priority: int) -> float:
        """How long a new one would wait, as things go."""
        return (self.queue.ahead_of(tenant, priority) + 1) * self.account.lasts_s / (self.places or 1)

    def make_room(self, tenant: str, priority: int, deadline: float) -> Overloaded | None:
        """Why one that cannot run at once cannot wait either. Refuses one that waits in vain, if that makes room."""
        now = asyncio.get_running_loop().time()
        wait_s = self.wait_s(tenant, priority)
        if now + wait_s >= deadline:
            return self._refused("deadline", wait_s)
        if self.has_room:
            return None
        doomed, why = min(self.queue, key=lambda waiter: waiter.deadline, default=None), "deadline"
        if doomed is None or doomed.deadline > now + self.account.lasts_s:
            doomed, why = self._outranked(tenant, priority), "queue-full"
        if doomed is None:
            return self._refused("queue-full", wait_s)
        self.queue.drop(doomed)
        self._shown()
        if not doomed.outcome.done():
            doomed.outcome.set_exception(self._refused(why, wait_s))
        return None

    def _outranked(self, tenant: str, priority: int) -> Waiter | None:
        """Who gives a full queue's place up to this one: of the lowest priority, the newest of the tenant that has the
        most waiting. Without it, who has filled the queue would keep everybody else out."""
        least = min((waiter.priority for waiter in self.queue), default=priority)
        rivals = [waiter for waiter in self.queue if waiter.priority == least]
        waiting = Counter(waiter.tenant for waiter in rivals)
        if not rivals or least > priority:
            return None
        ((largest, most),) = waiting.most_common(1)
        if least == priority and most <= waiting[tenant] + 1:
            return None
        return max((waiter for waiter in rivals if waiter.tenant == largest), key=lambda waiter: waiter.since)

    async def wait(self, waiter: Waiter) -> str:
        """Returns its place. Raises Overloaded, DeadlineOver; who is cancelled is gone from the queue at once."""
        waiter.since = asyncio.get_running_loop().time()
        if waiter.since + (wait_s := self.wait_s(waiter.tenant, waiter.priority)) >= waiter.deadline:
            raise self._refused("deadline", wait_s)
        until = min(waiter.since + self.patience_s, waiter.deadline)
        self.queue.push(waiter)
        self._shown()
        self.advance()
        try:
            async with asyncio.timeout_at(until):
                place = await waiter.outcome
        except BaseException as error:
            self._given_up(waiter)
            if not isinstance(error, TimeoutError):
                raise
            if waiter.deadline <= until:
                metrics.shed.inc(self.name, "deadline")
                raise DeadlineOver from None
            raise self._refused("queue-time", self.wait_s(waiter.tenant, waiter.priority)) from None
        metrics.queue_seconds.observe(asyncio.get_running_loop().time() - waiter.since, self.name)
        return place

    def _given_up(self, waiter: Waiter) -> None:
        if self.queue.drop(waiter):
            self._shown()
        outcome = waiter.outcome
        if outcome.done() and not outcome.cancelled() and not outcome.exception():
            self.leave(outcome.result())  # which came in the same moment

    def leave(self, place: str) -> None:
        """The place is free again."""
        if self.shared:
            self.shared.give_back(self, place)
        self.free()

    def free(self) -> None:
        self.running -= 1
        if self.queue:
            self.advance()

    def advance(self) -> None:
        """Gives places to those who wait, as far as there are any."""
        if self.shared is None or (not self.shared.is_up and self.shared.goes_on_without):
            self._advance_here()
        elif self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())

    def _advance_here(self) -> None:
        while self.queue and (self.places is None or self.running < self.places):
            self._give(uuid4().hex)

    def _give(self, place: str) -> bool:
        """To whoever is next; False if nobody is."""
        while waiter := self.queue.pop():
            self._shown()
            if not waiter.outcome.done():
                self.running += 1
                waiter.outcome.set_result(place)
                return True
        return False

    async def _ask(self) -> None:
        """Asks for places as long as anybody waits."""
        assert self.shared
        try:
            while self.queue:
                while self.queue:
                    await self._ask_once(self.shared)
                await self.shared.step_back(self)  # while somebody may come
        finally:
            self._asking = None

    async def _ask_once(self, shared: Places) -> None:
        place = uuid4().hex
        given = True if self.places is None else await shared.take(self, place)
        if given and not self._give(place):
            shared.give_back(self, place)
        if given is None:
            self._without()
        if not given:
            await asyncio.sleep(ASK_AGAIN_S)

    def _without(self) -> None:
        """Nobody says whose the places are."""
        assert self.shared
        if self.shared.goes_on_without:
            return self._advance_here()
        while waiter := self.queue.pop():
            if not waiter.outcome.done():
                waiter.outcome.set_exception(limits_unknown())
        self._shown()

    def _refused(self, reason: str, retry_s: float) -> Overloaded:
        metrics.shed.inc(self.name, reason)
        return Overloaded(WHY[reason].format(self.name), retry_after_s=in_whole_s(retry_s))

    def _shown(self) -> None:
        metrics.queue_length.set(len(self.queue), self.name)


WHY = {
    "queue-full": "{0} is busy and its queue is full",
    "queue-time": "{0} is busy: no place became free in time",
    "deadline": "{0} is busy: it cannot answer before the request's deadline (x-request-timeout-s)",
}


def limits_unknown() -> Overloaded:
    return Overloaded("limits cannot be checked now; try again", retry_after_s=1)


def in_whole_s(seconds: float) -> int:
    """As Retry-After wants it: no sooner, and not at once."""
    return max(1, math.ceil(round(seconds, 3)))
