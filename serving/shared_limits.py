"""Limits that hold across processes and gateways: the accounts of `serving/accounts.py`, kept in one Redis.

Everything is asked by one script (`shared_limits.lua`), so in one round trip and atomically, and times are Redis' own.
While a call is under way, what else is to be asked collects for the next: the more requests, the less each costs.
What runs is leased, and renewed each second: of a gateway that is killed, everything is free again after LEASE_S.

A request waits at most PATIENCE_S for Redis. After FAILURES in a row nobody asks any more until it has answered a
probe, one a second; then what runs is leased anew. One Redis, or one with replicas, but no cluster.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
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
from penstock.callers import Quota
from penstock.store import UNAVAILABLE, Store
from serving.accounts import LIMITS, Limit, Refusal, Standing
from serving.admission import Ticket, Verdict
from serving.exchange import nothing
from serving.lines import Line
from serving.spent import spent_by
from serving.windows import Calendar, day_ends_in, month_ends_in

log = logging.getLogger(__name__)

SCRIPT = (Path(__file__).parent / "shared_limits.lua").read_text(encoding="utf-8")
PATIENCE_S = 0.045
LEAST_S = 0.005
"""What a call is given at least, whatever those who ask have waited for the one before."""
FAILURES = 3
PROBE_S = 1.0
PROBED_WITHIN_S = 0.5
LEASE_S = 6.0
DATABASE_S = 1.0
AT_ONCE = 100
LATE_S = 0.01
"""An event loop that is later than this was busy, and Redis may have answered long ago."""
MOST_UNSETTLED = 20_000
KEEP_DAY_S = 2 * 86400
KEEP_MONTH_S = 33 * 86400


class Asked(NamedTuple):
    document: dict[str, Any]
    answer: asyncio.Future[Any]
    since: float


class SharedLimits:
    """`clock`: for tests, the time that Redis is to take it to be, in seconds."""

    def __init__(self, url: str, lost: Literal["open", "closed"], clock: Callable[[], float] | None = None) -> None:
        self.is_up = True
        self.goes_on_without = lost == "open"
        self.process = uuid4().hex[:16]
        self._clock = clock
        self._store: Store | None = None
        self._when_lost: Callable[[], None] = nothing
        self._calendar = Calendar()
        self._redis = Redis.from_url(url, retry=Retry(NoBackoff(), 0))
        self._script = self._redis.register_script(SCRIPT)
        self._failures = 0
        self._asked: list[Asked] = []
        self._unsettled: list[dict[str, Any]] = []
        self._to_renew: list[Ticket] = []
        self._live: Iterable[Ticket] = ()
        self._talking: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None

    async def open(self, store: Store | None, when_lost: Callable[[], None]) -> None:
        """`when_lost`: to be called whenever each process is to go by its own accounts."""
        self._store, self._when_lost = store, when_lost
        metrics.limits_shared.set(1)
        if not await self._answers():
            self._give_up("to the first question")

    async def close(self) -> None:
        tasks = [task for task in (self._talking, self._probing) if task]
        if self._talking:
            await asyncio.wait([self._talking], timeout=1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(RedisError, OSError):
            await self._redis.aclose()

    async def book(self, ticket: Ticket, may_wait: bool) -> Verdict | None:
        if not self.is_up:
            return None
        try:
            verdict = await self._verdict(ticket, self._booking(ticket, may_wait))
        except BaseException:
            self._forget(ticket)
            raise
        if verdict is None and not self.goes_on_without:
            self._forget(ticket)
        return verdict

    def _forget(self, ticket: Ticket) -> None:
        """It may be booked, though nobody has heard of it."""
        self._settle({**self._entry(ticket), "tokens": 0, "again": True})
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

    def _booking(self, ticket: Ticket, may_wait: bool) -> dict[str, Any]:
        document: dict[str, Any] = {
            "ticket": ticket.id,
            "reserved": sum(ticket.estimate),
            "accounts": [
                {
                    "whose": whose,
                    "base": base,
                    "quota": given(quota),
                    "periods": [
                        {"limit": limit, "name": name, "most": most} for limit, name, most in self._periods(quota)
                    ],
                    "lasts_ms": round(lasts_s * 1000),
                }
                for whose, base, quota, lasts_s in whose_of(ticket)
            ],
        }
        line = ticket.line
        if line and line.places is not None:
            document["line"] = {
                "base": line_base(line),
                "places": line.places,
                "urgency": ticket.caller.priority,
                "first": not line.queue,
                "may_wait": may_wait,
            }
        return document

    def _periods(self, quota: Quota) -> list[tuple[Limit, str, int]]:
        calendar = self._calendar.turn_to(self._now())
        periods: list[tuple[Limit, str, int | None]] = [
            ("day", calendar.day, quota.daily_tokens),
            ("month", calendar.month, quota.monthly_tokens),
        ]
        return [(limit, name, most) for limit, name, most in periods if most is not None]

    async def _remember(self, ticket: Ticket) -> bool:
        """Redis has not heard of the key's day, or has forgotten it: the database tells, if it answers."""
        calendar = self._calendar.turn_to(self._now())
        try:
            async with asyncio.timeout(DATABASE_S):
                known = await spent_by(self._store, calendar, ticket.caller.id) if self._store else None
        except UNAVAILABLE as error:  # TimeoutError is an OSError
            log.error("what the key %s has used cannot be read: %s", ticket.caller.id, error)
            return False
        day = {"name": calendar.day, "used": known.in_day if known else 0, "keep_s": KEEP_DAY_S}
        month = {"name": calendar.month, "used": known.in_month if known else 0, "keep_s": KEEP_MONTH_S}
        return bool(await self._call("remember", {"base": key_base(ticket), "periods": [day, month]}))

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

    def renew(self, tickets: Iterable[Ticket]) -> None:
        """Keeps what runs, with what has come of it."""
        self._live = tickets
        if self.is_up and not self._to_renew:
            self._to_renew = list(tickets)
            self._talk()

    def _settle(self, entry: dict[str, Any]) -> None:
        if len(self._unsettled) < MOST_UNSETTLED:
            self._unsettled.append(entry)
        if self.is_up:
            self._talk()

    def _entry(self, ticket: Ticket) -> dict[str, Any]:
        periods = [name for _, name, _ in self._periods(ticket.caller.quota)]
        accounts = [
            {"base": base, "periods": periods if whose == "key" else []} for whose, base, _, _ in whose_of(ticket)
        ]
        entry: dict[str, Any] = {"ticket": ticket.id, "accounts": accounts, "came": ticket.came}
        if ticket.line and ticket.place:
            entry["place"] = {"base": line_base(ticket.line), "name": ticket.place}
        return entry

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
        settled = self._unsettled[:AT_ONCE]
        renewed, self._to_renew = self._to_renew[:AT_ONCE], self._to_renew[AT_ONCE:]
        live = set(self._live)
        renewals = [{**self._entry(ticket), "reserved": ticket.reserved} for ticket in renewed if ticket in live]
        operations = [
            {"operation": "settle", "tickets": settled},
            {"operation": "renew", "tickets": renewals},
            *(one.document for one in asked),
        ]
        waited_s = asyncio.get_running_loop().time() - asked[0].since if asked else 0.0
        try:
            _, _, *answers = await soon(self._run(operations), max(LEAST_S, PATIENCE_S - waited_s))
        except Exception as error:  # whatever it is, those who ask are not kept waiting
            self._failed(error)
            for entry in settled:
                entry["again"] = True  # what may have been settled is not counted twice
            self._unanswered(asked)
            self._unanswered(self._asked)
            return
        except BaseException:
            self._unanswered(asked)
            raise
        self._failures = 0
        del self._unsettled[: len(settled)]
        for one, answer in zip(asked, answers, strict=True):
            if not one.answer.done():
                one.answer.set_result(answer)

    def _run(self, operations: Sequence[Any]) -> Awaitable[Any]:
        document = {"operations": operations, "process": self.process, "lease_ms": round(LEASE_S * 1000)}
        now = b"" if self._clock is None else b"%d" % round(self._clock() * 1000)
        return self._script(args=[now, orjson.dumps(document)])

    def _unanswered(self, asked: list["Asked"]) -> None:
        for one in asked:
            if not one.answer.done():
                one.answer.set_result(None)
        asked.clear()

    def _failed(self, error: Exception) -> None:
        metrics.redis_failures.inc()
        self._failures += 1
        if self._failures >= FAILURES and self.is_up:
            self._give_up(type(error).__name__)

    def _give_up(self, why: str) -> None:
        self.is_up = False
        metrics.limits_shared.set(0)
        meanwhile = (
            "hold in each process by itself"
            if self.goes_on_without
            else "cannot be checked, and whatever has any is refused"
        )
        log.error("Redis does not answer (%s): limits %s until it does", why, meanwhile)
        self._probing = asyncio.get_running_loop().create_task(self._probe())
        self._when_lost()

    async def _probe(self) -> None:
        await asyncio.sleep(PROBE_S)
        while not await self._answers():
            await asyncio.sleep(PROBE_S)
        self.is_up, self._failures, self._probing = True, 0, None
        metrics.limits_shared.set(1)
        log.warning("Redis answers again: limits are shared")
        self.renew(self._live)

    async def _answers(self) -> bool:
        """Whether it does, to who has time."""
        try:
            await soon(self._run([]), PROBED_WITHIN_S)
        except Exception as error:  # without the next probe it would be lost for ever
            log.debug("Redis does not answer: %s", type(error).__name__)
            return False
        return True

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


def whose_of(ticket: Ticket) -> Sequence[tuple[str, str, Quota, float]]:
    """Of each of its accounts: whose, its base in Redis, its limits, how long a request lasts."""
    accounts = []
    if ticket.account:
        accounts.append(("key", key_base(ticket), ticket.caller.quota, ticket.account.lasts_s))
    if ticket.line:
        accounts.append(("model", line_base(ticket.line), ticket.line.quota, ticket.line.account.lasts_s))
    return accounts


def key_base(ticket: Ticket) -> str:
    return f"penstock:key:{{{ticket.caller.id}}}"


def line_base(line: Line) -> str:
    return f"penstock:model:{{{line.name}}}"


def given(quota: Quota) -> dict[str, int]:
    limits = {"rpm": quota.rpm, "tpm": quota.tpm, "concurrent": quota.concurrent}
    return {name: limit for name, limit in limits.items() if limit is not None}


def limit_of(said: bytes) -> Limit:
    return LIMITS[LIMITS.index(said.decode())]
