"""One request to a pool, until it is answered: tries, hedges, and goes on elsewhere with a stream that was cut.

Nothing is tried again that the engine may not be asked again (its 4xx), that the caller has waited for long enough
(time-outs after the first byte, the deadline), or beyond the pool's share of retries.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from engine.asked import Asked, DeadlineOver, Limits, NoFirstByte, Receiver
from engine.attempt import Attempt
from engine.connection import Answer
from engine.continuation import Joined, Said, is_exact, rest_of
from engine.pool import NoReplica, Pool
from engine.replica import Replica
from penstock import metrics
from penstock.errors import EngineError, EngineTimeout, EngineUnavailable, PenstockError, RateLimited

Task = asyncio.Task[Answer | None]
Told = Callable[[Answer | None, PenstockError | None], None]
log = logging.getLogger(__name__)

TRIES = 2
CONTINUATIONS = 3
# A replica that has failed is probed at once: for so long it is waited for, to go on with a stream.
LOOKS = 20
LOOK_S = 0.1


class Dispatch:
    """Answers `asked` through `pool`; streams go to `receiver`. `model` is the served name, for the metrics."""

    def __init__(self, pool: Pool, asked: Asked, receiver: Receiver, limits: Limits, model: str) -> None:
        self.pool = pool
        self.asked = asked
        self.receiver = receiver
        self.limits = limits
        self.model = model
        self._tried: list[Replica] = []
        self._sent = 0
        self._heard = False
        self._winner: Attempt | None = None
        self._first: Attempt | None = None
        self._tell: Told | None = None
        self._began: float | None = None

    def start(self, tell: Told) -> bool:
        """Makes the first try, if nothing has to be waited for but its answer: a replica is free, and no second one
        is to be asked beside it; else False.

        `tell` is told how it ended: a whole answer, None after a stream, or an error, in which case `run` may still
        answer.
        """
        replica = None if self.pool.routing.hedge_after_s is not None else self.pool.choose(self.asked.hint)
        if replica is None:
            return False
        self._enter()
        self._tried.append(replica)
        self._tell = tell
        self._first = Attempt(self.asked, replica, self.receiver, self.limits)
        try:
            self._first.start(self._told)
        except BaseException:  # not begun: the caller is told, and nothing may count as running
            self.cancel()
            raise
        return True

    def _told(self, attempt: Attempt, answer: Answer | None, error: PenstockError | None) -> None:
        """How the first try ended, if nobody awaits it."""
        tell, self._tell = self._tell, None
        self._first = None
        self._note(attempt)
        self._leave(error)
        if attempt.begun and error:
            self._winner = attempt  # `run` may go on with its stream
        if tell:
            tell(answer, error)

    def cancel(self) -> None:
        """Ends what `start` began: nobody wants the answer any more."""
        if self._first:
            self._first.cancel()
            self._first = self._tell = None
            self._leave(asyncio.CancelledError())

    async def run(self, failure: EngineError | None = None) -> Answer | None:
        """A whole answer; None after a stream. Raises PenstockError: before the receiver began, nothing is out.

        `failure`: how the first try ended, which `start` made.
        """
        self._enter()
        try:
            answer = await self._first_or_after(failure)
        except BaseException as error:  # a client that left (CancelledError), too
            self._leave(error)
            raise
        self._leave(None)
        return answer

    async def _first_or_after(self, failure: EngineError | None) -> Answer | None:
        if failure is None:
            try:
                return await self._next_try()
            except EngineError as first:
                failure = first
        return await self._after(failure)

    def _enter(self) -> None:
        self._began = self._began or time.monotonic()
        self.pool.active += 1

    def _leave(self, error: BaseException | None) -> None:
        """It is answered, or nobody waits for it, or nobody does yet: between a first try and `run`."""
        pool = self.pool
        pool.active -= 1
        if error is None and self._began:
            pool.took(time.monotonic() - self._began)
        if isinstance(error, EngineUnavailable | RateLimited):
            error.retry_after_s = error.retry_after_s or pool.retry_after_s
        # Without these two every request would leave a circle of objects for the garbage collector.
        self._winner = self.receiver.source = None

    def _note(self, attempt: Attempt) -> None:
        self._sent += attempt.sent
        self._heard = attempt.heard

    async def _after(self, failure: EngineError) -> Answer | None:
        """What comes of a first try that failed."""
        while True:
            if self._winner:
                await self._go_on(self._winner, failure)
                return None
            if not self._worth_another(failure):
                raise failure
            metrics.retries.inc(self.model, failure.code or failure.type)
            log.warning("%s: trying once more: %s", self._tried[-1].name, failure)
            self.pool.retrying += 1
            try:
                return await self._next_try()
            except EngineError as error:
                failure = error
            finally:
                self.pool.retrying -= 1

    def _worth_another(self, failure: EngineError) -> bool:
        if isinstance(failure, NoReplica) or (
            isinstance(failure, EngineTimeout) and not isinstance(failure, NoFirstByte)
        ):
            return False
        # A replica that does not accept connections has not seen the request, so that others may be asked beyond TRIES.
        in_reason = len(self._tried) < len(self.pool.replicas) + TRIES
        # Who said nothing does no more work on it: to move a request adds none, so that a replica may fail under many.
        return self._sent < TRIES and in_reason and (not self._heard or self.pool.may_retry())

    async def _next_try(self) -> Answer | None:
        asked = self.asked
        replica = self.pool.choose(asked.hint, self._tried)
        if replica is None:
            replica = await within(asked, self.pool.available(asked.hint, self._tried))
        self._tried.append(replica)
        if self.pool.routing.hedge_after_s is None:
            return await self._at(self._attempt(replica))
        return await self._hedged(replica, self.pool.routing.hedge_after_s)

    def _attempt(self, replica: Replica) -> Attempt:
        return Attempt(self.asked, replica, self.receiver, self.limits, self._may_begin)

    def _may_begin(self, attempt: Attempt) -> bool:
        """The first to have content is the one that is heard."""
        if self._winner is None:
            self._winner = attempt
        return self._winner is attempt

    async def _at(self, attempt: Attempt) -> Answer | None:
        try:
            return await attempt.run()
        finally:
            self._note(attempt)

    async def _hedged(self, replica: Replica, after_s: float) -> Answer | None:
        """A second try beside one that is slow to begin; whichever begins first is heard, the other is ended."""
        tries = self._started(replica)
        hedges = 0
        try:
            await asyncio.wait(tries, timeout=after_s)
            other = None if self._winner else self.pool.choose(self.asked.hint, self._tried)
            if other and not any(task.done() for task in tries) and self.pool.may_retry():
                self._tried.append(other)
                metrics.hedges.inc(self.model)
                hedges = 1
                self.pool.retrying += hedges
                tries |= self._started(other)
            return await self._soonest(tries)
        finally:
            self.pool.retrying -= hedges
            for task in tries:
                task.cancel()
            await asyncio.gather(*tries, return_exceptions=True)

    def _started(self, replica: Replica) -> dict[Task, Attempt]:
        attempt = self._attempt(replica)
        return {asyncio.ensure_future(self._at(attempt)): attempt}

    async def _soonest(self, tries: dict[Task, Attempt]) -> Answer | None:
        """What the one that is heard returns or raises; if none is, what the last to end raises."""
        running = set(tries)
        while True:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            heard = [task for task in done if tries[task] is self._winner]
            if heard or not running:
                return (heard or list(done))[0].result()

    async def _go_on(self, broken: Attempt, failure: EngineError) -> None:
        """The caller has a part of the answer: asks others for the rest. Raises the failure where none can say it."""
        said = Said.by(broken) if is_exact(self.asked.path, self.asked.body) else None
        last = broken.replica
        for _ in range(CONTINUATIONS):
            if said is None or isinstance(failure, DeadlineOver):
                break
            attempt: Attempt | None = None
            try:
                last = await within(self.asked, self._other_than(last))
                asked, tokens = await rest_of(self.asked, said, last)
                log.warning("a stream broke off (%s); %s goes on", failure, last.name)
                attempt = Attempt(asked, last, Joined(self.receiver, said, tokens), self.limits)
                await self._at(attempt)
                metrics.continued.inc(self.model)
                return
            except NoReplica:
                break
            except EngineError as error:
                failure = error
            except PenstockError as error:  # about a request that the caller has not made
                log.warning("%s cannot go on with a stream: %s", last.name, error)
            if attempt and attempt.begun:
                said = Said.by(attempt, said)
        raise failure

    async def _other_than(self, replica: Replica) -> Replica:
        """One that takes a request now or in a moment: who has failed is looked at again at once. Raises NoReplica."""
        for _ in range(LOOKS):
            other = self.pool.choose(self.asked.hint, [replica])
            if other:
                return other
            if len(self.pool.replicas) == 1:
                break
            await asyncio.sleep(LOOK_S)
        raise NoReplica("no other replica can go on with the stream")


async def within(asked: Asked, wait: Coroutine[Any, Any, Replica]) -> Replica:
    """Raises DeadlineOver when the request's deadline comes first."""
    if asked.deadline == float("inf"):
        return await wait
    try:
        async with asyncio.timeout_at(asked.deadline):
            return await wait
    except TimeoutError as error:
        raise DeadlineOver from error
