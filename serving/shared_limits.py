"""Limits that hold across processes and gateways: the accounts of `serving/accounts.py`, kept in one Redis.

Every operation is one script (`shared_limits.lua`), so one round trip and atomic, and times are Redis' own. What is
under way is leased and renewed each second: of a gateway that is killed, everything is free again after LEASE_S.

A request waits at most PATIENCE_S for Redis. After FAILURES in a row nobody asks any more until it has answered a
probe, one a second; then what runs is leased anew. One Redis, or one with replicas, but no cluster.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import orjson
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from penstock import metrics
from penstock.callers import Quota
from penstock.store import Store
from serving.accounts import LIMITS, Limit, Refusal, Standing
from serving.admission import Ticket, Verdict
from serving.lines import Line
from serving.spent import spent_by
from serving.windows import Calendar, day_ends_in, month_ends_in

log = logging.getLogger(__name__)

SCRIPT = (Path(__file__).parent / "shared_limits.lua").read_text(encoding="utf-8")
PATIENCE_S = 0.05
CONNECTIONS = 16
FAILURES = 3
PROBE_S = 1.0
LEASE_S = 6.0
AT_ONCE = 200
MOST_UNSETTLED = 20_000
KEEP_DAY_S = 2 * 86400
KEEP_MONTH_S = 33 * 86400


class SharedLimits:
    """`clock`: for tests, the time that Redis is to take it to be, in seconds."""

    def __init__(self, url: str, lost: Literal["open", "closed"], clock: Callable[[], float] | None = None) -> None:
        self.is_up = True
        self.goes_on_without = lost == "open"
        self.process = uuid4().hex[:16]
        self._clock = clock
        self._store: Store | None = None
        self._calendar = Calendar()
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=PATIENCE_S, retry=Retry(NoBackoff(), 0)
        )
        self._redis = Redis.from_pool(pool)
        self._script = self._redis.register_script(SCRIPT)
        self._failures = 0
        self._unsettled: list[dict[str, Any]] = []
        self._to_renew: list[Ticket] = []
        self._live: Iterable[Ticket] = ()
        self._writing: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None

    async def open(self, store: Store | None) -> None:
        self._store = store
        metrics.limits_shared.set(1)
        if await self._call("renew", {"tickets": []}) is None:
            log.warning("Redis does not answer: limits %s", self._meanwhile)

    async def close(self) -> None:
        if self._probing:
            self._probing.cancel()
        if self._writing:
            await asyncio.wait([self._writing], timeout=1)
            self._writing.cancel()
        with suppress(RedisError, OSError):
            await self._redis.aclose()

    async def book(self, ticket: Ticket, may_wait: bool) -> Verdict | None:
        verdict = None
        try:
            verdict = await self._verdict(ticket, self._booking(ticket, may_wait))
        finally:
            if verdict is None and not self.goes_on_without:  # which may be booked all the same
                self._settle({**self._entry(ticket), "tokens": 0, "again": True})
                if ticket.line:
                    self.give_back(ticket.line, ticket.id)
        return verdict

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
            known = await spent_by(self._store, calendar, ticket.caller.id) if self._store else None
        except (SQLAlchemyError, OSError) as error:
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
            self._write()

    def _settle(self, entry: dict[str, Any]) -> None:
        if len(self._unsettled) < MOST_UNSETTLED:
            self._unsettled.append(entry)
        if self.is_up:
            self._write()

    def _entry(self, ticket: Ticket) -> dict[str, Any]:
        periods = [name for _, name, _ in self._periods(ticket.caller.quota)]
        accounts = [
            {"base": base, "periods": periods if whose == "key" else []} for whose, base, _, _ in whose_of(ticket)
        ]
        entry: dict[str, Any] = {"ticket": ticket.id, "accounts": accounts, "came": ticket.came}
        if ticket.line and ticket.place:
            entry["place"] = {"base": line_base(ticket.line), "name": ticket.place}
        return entry

    def _write(self) -> None:
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_all())

    async def _write_all(self) -> None:
        """One call after the other, so that what has ended is not renewed behind it."""
        try:
            while self.is_up and (self._unsettled or self._to_renew):
                await (self._settle_some() if self._unsettled else self._renew_some())
        finally:
            self._writing = None

    async def _settle_some(self) -> None:
        some = self._unsettled[:AT_ONCE]
        if await self._call("settle", {"tickets": some}) is not None:
            del self._unsettled[: len(some)]
        for entry in self._unsettled[:AT_ONCE]:
            entry["again"] = True  # what may have been settled is not counted twice

    async def _renew_some(self) -> None:
        some, self._to_renew = self._to_renew[:AT_ONCE], self._to_renew[AT_ONCE:]
        live = set(self._live)
        entries = [{**self._entry(ticket), "reserved": ticket.reserved} for ticket in some if ticket in live]
        await self._call("renew", {"tickets": entries})

    async def _call(self, operation: str, document: dict[str, Any]) -> Any:
        """What Redis answers; None if it does not, or is not asked."""
        if not self.is_up:
            return None
        document |= {"lease_ms": round(LEASE_S * 1000), "process": self.process}
        now = b"" if self._clock is None else b"%d" % round(self._clock() * 1000)
        try:
            answer = await soon(self._script(args=[operation, now, orjson.dumps(document)]))
        except (RedisError, OSError) as error:  # TimeoutError is one
            self._failed(error)
            return None
        self._failures = 0
        return answer

    def _failed(self, error: Exception) -> None:
        metrics.redis_failures.inc()
        self._failures += 1
        if self._failures >= FAILURES and self.is_up:
            self.is_up = False
            metrics.limits_shared.set(0)
            log.error("Redis does not answer (%s): limits %s", type(error).__name__, self._meanwhile)
            self._probing = asyncio.get_running_loop().create_task(self._probe())

    @property
    def _meanwhile(self) -> str:
        if self.goes_on_without:
            return "hold in each process by itself until it does"
        return "cannot be checked, and what they are of is refused until it does"

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE_S)
            with suppress(RedisError, OSError):
                await soon(self._redis.ping())
                break
        self.is_up, self._failures, self._probing = True, 0, None
        metrics.limits_shared.set(1)
        log.warning("Redis answers again: limits are shared")
        self.renew(self._live)

    def _now(self) -> float:
        return time.time() if self._clock is None else self._clock()


async def soon(answer: Awaitable[Any]) -> Any:
    """Raises TimeoutError for what has not come within PATIENCE_S; not where it is this process that was late."""
    task = asyncio.ensure_future(answer)
    try:
        await asyncio.wait([task], timeout=PATIENCE_S)
        for _ in range(2):
            if not task.done():
                await asyncio.sleep(0)
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
