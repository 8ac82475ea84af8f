"""Limits that hold across processes and gateways: the accounts of `serving/accounts.py`, kept in one Redis.

Everything is asked by one script (`shared_limits.lua`), so in one round trip and atomically, and times are Redis' own.
While a call is under way, what else is to be asked collects for the next: the more requests, the less each costs.
What runs is leased, and renewed each second: of a gateway that is killed, everything is free again after LEASE_S.

A request waits at most PATIENCE_S for Redis, and not at all while that is known to be gone (`serving/redis_health.py`);
when it answers again, what runs is leased anew. One Redis, or one with replicas, but no cluster.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import uuid4

import orjson
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from penstock import metrics
from penstock.store import Store
from serving.accounts import LIMITS, Limit, Refusal, Standing
from serving.admission import Ticket, Verdict
from serving.lines import Line
from serving.redis_documents import booking, entry, line_base, memory
from serving.redis_health import RedisHealth
from serving.spent import Spent, SpentReads
from serving.windows import Calendar, day_ends_in, month_ends_in

log = logging.getLogger(__name__)

SCRIPT = (Path(__file__).parent / "shared_limits.lua").read_text(encoding="utf-8")
PATIENCE_S = 0.045
LEAST_S = 0.005
"""What a call is given at least, whatever those who ask have waited for the one before."""
PROBED_WITHIN_S = 0.5
LEASE_S = 6.0
AT_ONCE = 100
LATE_S = 0.01
"""An event loop that is later than this was busy, and Redis may have answered long ago."""
MOST_UNSETTLED = 20_000
MINUTE_S = 60.0
WITHOUT = {
    "open": "hold in each process by itself",
    "closed": "cannot be checked, and whatever has any is refused",
}


class Asked(NamedTuple):
    document: dict[str, Any]
    answer: asyncio.Future[Any]
    since: float


class SharedLimits:
    """`clock`: for tests, the time that Redis is to take it to be, in seconds."""

    def __init__(self, url: str, lost: Literal["open", "closed"], clock: Callable[[], float] | None = None) -> None:
        self.goes_on_without = lost == "open"
        self.process = uuid4().hex[:16]
        self._clock = clock
        self._spent: SpentReads | None = None
        self._calendar = Calendar()
        self._redis = Redis.from_url(url, retry=Retry(NoBackoff(), 0))
        self._script = self._redis.register_script(SCRIPT)
        self._asked: list[Asked] = []
        self._numbers = itertools.count(1)
        self._unsettled: list[dict[str, Any]] = []
        self._settled = 0
        """The number of the last settlement that Redis has answered."""
        self._left_out = False
        self._to_renew: list[Ticket] = []
        self._live: Collection[Ticket] = ()
        self._talking: asyncio.Task[None] | None = None
        self._health = RedisHealth(self._probe, WITHOUT[lost])
        self._health.when_back = lambda: self.renew(self._live)

    @property
    def is_up(self) -> bool:
        return self._health.is_up

    async def open(self, store: Store | None, when_lost: Callable[[], None]) -> None:
        """`when_lost`: to be called whenever each process is to go by its own accounts."""
        self._spent = SpentReads(store, self._today()) if store else None
        self._health.when_lost = when_lost
        await self._health.open()

    async def close(self) -> None:
        if talking := self._talking:
            await asyncio.wait([talking], timeout=1)
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)
        await self._health.close()
        if self._spent:
            await self._spent.close()
        with suppress(RedisError, OSError):
            await self._redis.aclose()

    async def book(self, ticket: Ticket, may_wait: bool) -> Verdict | None:
        if not self.is_up:
            return None
        try:
            verdict = await self._verdict(ticket, booking(ticket, may_wait, self._today()))
        except BaseException:
            self._forget(ticket)
            raise
        if verdict is None and not self.goes_on_without:
            self._forget(ticket)
        return verdict

    def _forget(self, ticket: Ticket) -> None:
        """It may be booked, though nobody has heard of it."""
        self._settle({**self._entry(ticket), "tokens": 0})
        if ticket.line:
            self.give_back(ticket.line, ticket.id)

    async def _verdict(self, ticket: Ticket, document: dict[str, Any]) -> Verdict | None:
        answer = await self._call("book", document)
        if answer and answer[1] == b"unknown" and await self._remember(ticket):
            answer = await self._call("book", document)
        if answer is None or answer[1] == b"unknown":
            return None
        whose, limit, retry_ms, placed, requests, requests_ms, tokens, tokens_ms = answer
        standing = Standing(requests, requests_ms / 1000, tokens, tokens_ms / 1000)
        if not whose:
            return Verdict(bool(placed), standing)
        if limit == b"places":
            return Verdict(False, standing, no_place=True)
        refusal = Refusal(limit_of(limit), self._retry_s(limit, retry_ms))
        return Verdict(False, standing, refusal, of_key=whose == b"key")

    def _retry_s(self, limit: bytes, retry_ms: int) -> float:
        if retry_ms >= 0:
            return retry_ms / 1000
        return (day_ends_in if limit == b"day" else month_ends_in)(self._now())

    async def _remember(self, ticket: Ticket) -> bool:
        """Redis has not heard of the key's day, or has forgotten it: the database tells, if it answers."""
        known: Spent | None = Spent(self._today().day)
        if self._spent:
            known = await self._spent.spent_by(ticket.caller.id)
        return known is not None and bool(await self._call("remember", memory(ticket, known)))

    async def take(self, line: Line, place: str) -> bool | None:
        more = len(line.queue) > 1
        document = {"base": line_base(line), "places": line.places, "urgency": line.queue.urgency}
        answer = await self._call("take", {**document, "place": place, "more": more})
        if answer is None:  # it may be taken all the same
            self.give_back(line, place)
            return None
        return bool(answer)

    async def step_back(self, line: Line) -> None:
        await self._call("step_back", {"base": line_base(line)})

    def give_back(self, line: Line, place: str) -> None:
        self._settle({"accounts": [], "place": {"base": line_base(line), "name": place}})

    def settle(self, ticket: Ticket, tokens: int) -> None:
        self._settle({**self._entry(ticket), "tokens": tokens})

    def renew(self, tickets: Collection[Ticket]) -> None:
        """Keeps what runs, with what has come of it."""
        self._live = tickets
        if self.is_up and not self._to_renew:
            self._to_renew = list(tickets)
            self._talk()

    def _settle(self, document: dict[str, Any]) -> None:
        if len(self._unsettled) < MOST_UNSETTLED:
            since = asyncio.get_running_loop().time()
            self._unsettled.append({**document, "number": next(self._numbers), "since": since})
        else:
            self._leave_out()
        if self.is_up:
            self._talk()

    def _leave_out(self) -> None:
        metrics.redis_left_out.inc()
        if not self._left_out:
            log.error(LEFT_OUT, MOST_UNSETTLED)
        self._left_out = True

    def _entry(self, ticket: Ticket) -> dict[str, Any]:
        return entry(ticket, self._today())

    async def _call(self, operation: str, document: dict[str, Any]) -> Any:
        """What Redis answers; None if it does not, or is not asked."""
        if not self.is_up:
            return None
        loop = asyncio.get_running_loop()
        asked = Asked({**document, "operation": operation}, loop.create_future(), loop.time())
        self._asked.append(asked)
        self._talk()
        return await asked.answer

    def _talk(self) -> None:
        if self._talking is None:
            self._talking = asyncio.get_running_loop().create_task(self._talk_on())

    async def _talk_on(self) -> None:
        """One call after the other, so that what has ended is not renewed behind it."""
        try:
            while self.is_up and (self._asked or self._unsettled or self._to_renew):
                await self._talk_once()
        finally:
            self._talking = None
            self._unanswered(self._asked)

    async def _talk_once(self) -> None:
        wanted = [one for one in self._asked if not one.answer.done()]  # else who asked has left
        asked, self._asked = wanted[:AT_ONCE], wanted[AT_ONCE:]
        now = asyncio.get_running_loop().time()
        settled = self._unsettled[:AT_ONCE]
        if settled and settled[0]["since"] < now - MINUTE_S:
            settled = [{**one, "late": one["since"] < now - MINUTE_S} for one in settled]
        settled_to = settled[-1]["number"] if settled else self._settled
        renewed, self._to_renew = self._to_renew[:AT_ONCE], self._to_renew[AT_ONCE:]
        came = [(ticket, ticket.came) for ticket in renewed if ticket in self._live]
        renewals = [{**self._entry(ticket), "came": count, "reserved": ticket.reserved} for ticket, count in came]
        operations = [
            {"operation": "settle", "tickets": settled},
            {"operation": "renew", "tickets": renewals, "after": settled_to},
            *(one.document for one in asked),
        ]
        waited_s = now - asked[0].since if asked else 0.0
        try:
            answers = await soon(self._run(operations), max(LEAST_S, PATIENCE_S - waited_s))
        except Exception as error:  # whatever it is, those who ask are not kept waiting
            self._health.failed(error)
            self._unanswered(asked)
            self._unanswered(self._asked)
            return
        except BaseException:
            self._unanswered(asked)
            raise
        self._health.worked()
        del self._unsettled[: len(settled)]
        self._settled, self._left_out = settled_to, False
        if not isinstance(answers[1], Exception):
            for ticket, count in came:
                ticket.told = count
        for answer in answers:
            if isinstance(answer, Exception):  # of one account; to those who ask about it, Redis is silent
                self._health.refused(answer)
        for one, answer in zip(asked, answers[2:], strict=True):
            if not one.answer.done():
                one.answer.set_result(None if isinstance(answer, Exception) else answer)

    def _run(self, operations: Sequence[Any]) -> Awaitable[Any]:
        document = {"operations": operations, "process": self.process, "lease_ms": round(LEASE_S * 1000)}
        now = b"" if self._clock is None else b"%d" % round(self._clock() * 1000)
        return self._script(args=[now, orjson.dumps(document)])

    def _unanswered(self, asked: list["Asked"]) -> None:
        for one in asked:
            if not one.answer.done():
                one.answer.set_result(None)
        asked.clear()

    async def _probe(self) -> None:
        """What Redis has time for: it writes, as every other call does."""
        await soon(self._run([{"operation": "probe"}]), PROBED_WITHIN_S)

    def _today(self) -> Calendar:
        return self._calendar.turn_to(self._now())

    def _now(self) -> float:
        return time.time() if self._clock is None else self._clock()


async def soon(answer: Awaitable[Any], within_s: float) -> Any:
    """Raises TimeoutError for what has not come in time; not where it is this process that was late."""
    loop = asyncio.get_running_loop()
    due = loop.time() + within_s
    task = asyncio.ensure_future(answer)
    try:
        await asyncio.wait([task], timeout=within_s)
        if not task.done() and loop.time() > due + LATE_S:
            await asyncio.wait([task], timeout=LATE_S)
        if not task.done():
            raise TimeoutError
        return task.result()
    finally:
        task.cancel()


LEFT_OUT = (
    "%d ended requests wait for Redis, and it is told of no more until it answers: what they have used is in the "
    "ledger, and not in the budgets that Redis keeps"
)


def limit_of(said: bytes) -> Limit:
    return LIMITS[LIMITS.index(said.decode())]
