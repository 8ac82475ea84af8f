"""Who may go on to an engine now: the limits of keys and of models, and the queue before a model that is full.

A request enters once it may be sent on and leaves when it is over, whatever became of it. In between it holds what it
may come to, and what has come counts as it comes. What nobody has limited is never looked at.

Without Redis the limits hold in this process, with it across all of them (`serving/shared_limits.py`); the accounts
here are kept in both cases, for while it does not answer.
"""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from penstock import metrics
from penstock.callers import UNLIMITED, Caller
from penstock.config import Config, Model, State
from penstock.errors import OverBudget, Overloaded, PenstockError, RateLimited, StartError
from penstock.store import UNAVAILABLE, Store
from serving.accounts import Account, Moment, Refusal, Standing
from serving.estimates import Estimate
from serving.exchange import Headers
from serving.fair_queue import Waiter
from serving.limit_headers import as_headers
from serving.lines import Line, Places, in_whole_s, limits_unknown
from serving.spent import Spent, spent_by, spent_by_all
from serving.windows import Calendar

log = logging.getLogger(__name__)

EVERY_S = 1.0
FORGET_EVERY = 60
READ_EVERY_S = 30.0
DATABASE_S = 5.0


class Verdict(NamedTuple):
    """What Redis says of a request. `refusal` is of the key where `of_key`, else of the model."""

    placed: bool
    standing: Standing
    refusal: Refusal | None = None
    of_key: bool = True
    no_place: bool = False


class Shared(Places, Protocol):
    """The same limits for several processes, of which this one has a name."""

    process: str

    async def book(self, ticket: "Ticket", may_wait: bool) -> Verdict | None:
        """None: it does not answer."""

    def renew(self, tickets: Collection["Ticket"]) -> None: ...

    def settle(self, ticket: "Ticket", tokens: int) -> None: ...

    async def open(self, store: Store | None, when_lost: Callable[[], None]) -> None: ...

    async def close(self) -> None: ...


class Ticket:
    """One request's. `leave` is called once, `count` as often as there is something to count."""

    __slots__ = (
        "_of",
        "account",
        "accounts",
        "began",
        "caller",
        "came",
        "estimate",
        "line",
        "number",
        "place",
        "progress",
        "reserved",
        "told",
    )

    def __init__(
        self,
        of: "Admission",
        number: int,
        caller: Caller,
        account: Account | None,
        line: Line | None,
        estimate: Estimate,
    ) -> None:
        self._of = of
        self.number = number
        self.caller = caller
        self.account = account
        self.line = line
        self.accounts = of_both(account, line)
        self.estimate = estimate
        self.came = 0
        self.told = 0
        """What of `came` Redis has said that it has counted."""
        self.reserved = 0
        self.place: str | None = None
        self.began: float | None = None
        self.progress: Callable[[], int] = nothing_came
        """How many tokens of the answer have come."""

    @property
    def id(self) -> str:
        """No other process has the same."""
        return f"{self._of.process}-{self.number}"

    def count(self, came: int) -> None:
        """So many tokens of the answer have come until now."""
        if came > self.came:
            self._of.counted(self, came)

    def leave(self, tokens: int | None) -> None:
        """It is over, and prompt and answer were so many tokens; None: nobody has counted them."""
        self._of.left(self, self.estimate.prompt + self.came if tokens is None else tokens)


class Admission:
    """`lines` are the models that have limits, `store` tells what keys have used before. `async with` it where
    requests are served."""

    def __init__(
        self,
        config: Config,
        shared: Shared | None = None,
        store: Store | None = None,
        steady: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.shared = shared
        self.process = shared.process if shared else ""
        self.store = store
        self.lines: dict[str, Line] = {}
        self.live: set[Ticket] = set()
        self._steady = steady
        self._wall = wall
        self._calendar = Calendar()
        self._accounts: dict[str, Account] = {}
        self._spent: dict[str, Spent] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._sweeps = 0
        self._reading: asyncio.Task[None] | None = None
        self._learning: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self.change(config.models)

    def change(self, models: Mapping[str, Model]) -> None:
        """Other limits of models. What runs and waits goes on, under the new ones."""
        limited = {name: model for name, model in models.items() if is_limited(model)}
        for name in self.lines.keys() - limited.keys():
            self.lines.pop(name).change(Model(engine=models[name].engine if name in models else ""))
        for name, model in limited.items():
            if name in self.lines:
                self.lines[name].change(model)
            else:
                self.lines[name] = Line(name, model, self.shared)

    async def __aenter__(self) -> Self:
        if self.store and not self.shared:
            self._spent = await spent_by_all(self.store, self.now().calendar)
        if self.shared:
            await self._read_spent()
            await self.shared.open(self.store, self._alone)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sweeping:
            self._sweeping.cancel()
        if self._reading:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        for task in self._learning:
            task.cancel()
        await asyncio.gather(*self._learning, return_exceptions=True)
        if self.shared:
            await self.shared.close()

    def _alone(self) -> None:
        """Redis is gone: of budgets, what others use meanwhile is known only by the ledger."""
        if self._reading:
            self._reading.cancel()
        self._reading = asyncio.get_running_loop().create_task(self._read_on())

    async def _read_on(self) -> None:
        while self.shared and not self.shared.is_up:
            await self._read_spent()
            await asyncio.sleep(READ_EVERY_S)

    def learned(self, callers: Sequence[Caller]) -> None:
        """These may have budgets that they did not have: what they have used so far is in the ledger alone."""
        ids = {caller.id for caller in callers if caller.quota.daily_tokens or caller.quota.monthly_tokens}
        if ids:
            task = asyncio.get_running_loop().create_task(self._read_spent(ids))
            self._learning.add(task)
            task.add_done_callback(self._learning.discard)

    async def _read_spent(self, ids: Collection[str] | None = None) -> None:
        """Of these keys; None: of all."""
        if not self.store or (self.shared and not self.shared.goes_on_without):
            return
        calendar = self.now().calendar
        try:
            async with asyncio.timeout(DATABASE_S):
                if ids is None:
                    known = await spent_by_all(self.store, calendar)
                else:
                    known = await spent_by(self.store, calendar, ids)
        except UNAVAILABLE as error:  # TimeoutError is an OSError
            log.error("what keys have used cannot be read, and budgets go by what this process knows: %s", error)
            return
        self._spent = known if ids is None else self._spent | known
        for id, account in self._accounts.items():
            if spent := self._spent.pop(id, None):
                spent.lay_down(account.budget, calendar)

    def limits(self, caller: Caller, model: str) -> bool:
        """Whether a request of this caller to this model is to enter and leave."""
        return caller.quota is not UNLIMITED or model in self.lines

    def try_enter(self, caller: Caller, model: str, estimate: Estimate) -> Ticket | None:
        """None: it has to wait, for a place or for Redis; `enter` does. Raises RateLimited, Overloaded."""
        shared = self.shared
        if shared and (shared.is_up or not shared.goes_on_without):
            return None
        ticket = self._ticket(caller, model, estimate)
        line = ticket.line
        if line and not line.is_free:
            return None
        now = self.now()
        self._check_here(ticket, now)
        self._entered(ticket, now, placed=True)
        return ticket

    async def enter(self, caller: Caller, model: str, estimate: Estimate, deadline: float = math.inf) -> Ticket:
        """`deadline` is of the loop's clock. Raises RateLimited, Overloaded, DeadlineOver."""
        ticket = self._ticket(caller, model, estimate)
        if await self._booked(ticket, deadline):
            return ticket
        assert ticket.line
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[str] = loop.create_future()
        waiter = Waiter(caller.tenant, outcome, caller.priority, sum(estimate), deadline)
        try:
            ticket.place = await ticket.line.wait(waiter)
        except BaseException:
            ticket.leave(0)
            raise
        ticket.began = self._steady()
        return ticket

    async def _booked(self, ticket: Ticket, deadline: float) -> bool:
        """Whether it has its place, too. Raises PenstockError."""
        shared, line, caller = self.shared, ticket.line, ticket.caller
        if shared:
            verdict = await self._ask(shared, ticket, may_wait=line is not None and line.has_room)
            if verdict and verdict.no_place and line:
                if full := line.make_room(caller.tenant, caller.priority, deadline):
                    raise full
                verdict = await self._ask(shared, ticket, may_wait=True)
            if verdict:
                return self._as_told(ticket, verdict)
            if not shared.goes_on_without:
                metrics.shed.inc(line.name if line else "", "redis")
                raise limits_unknown()
        now = self.now()
        self._check_here(ticket, now)
        if line and not line.is_free:
            if full := line.make_room(caller.tenant, caller.priority, deadline):
                raise full
            self._entered(ticket, now, placed=False)
            return False
        self._entered(ticket, now, placed=True)
        return True

    async def _ask(self, shared: Shared, ticket: Ticket, *, may_wait: bool) -> Verdict | None:
        verdict = await shared.book(ticket, may_wait)
        if verdict and ticket.account:
            ticket.account.known = verdict.standing
        return verdict

    def _as_told(self, ticket: Ticket, verdict: Verdict) -> bool:
        if verdict.refusal:
            raise self._error(verdict.refusal, ticket if verdict.of_key else None, ticket.line)
        self._entered(ticket, self.now(), placed=verdict.placed)
        return verdict.placed

    def _check_here(self, ticket: Ticket, now: Moment) -> None:
        if ticket.account and (refusal := ticket.account.refusal(ticket.caller.quota, now)):
            raise self._error(refusal, ticket, ticket.line)
        if ticket.line and (refusal := ticket.line.account.refusal(ticket.line.quota, now)):
            raise self._error(refusal, None, ticket.line)

    def _entered(self, ticket: Ticket, now: Moment, *, placed: bool) -> None:
        ticket.reserved = ticket.estimate.prompt + ticket.estimate.output
        for account in ticket.accounts:
            account.enter(ticket.reserved, now)
        if placed:
            ticket.began = now.steady
            if ticket.line:
                ticket.place = ticket.id
                ticket.line.running += 1
        self.live.add(ticket)
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(EVERY_S, self._sweep)

    def counted(self, ticket: Ticket, came: int) -> None:
        """`Ticket.count`."""
        now = self.now()
        prompt, output = ticket.estimate
        reserved = prompt + max(0, output - came)
        for account in ticket.accounts:
            account.count(came - ticket.came, ticket.reserved - reserved, now)
        ticket.came, ticket.reserved = came, reserved

    def left(self, ticket: Ticket, tokens: int) -> None:
        """`Ticket.leave`."""
        self.live.discard(ticket)
        now = self.now()
        lasted_s = None if ticket.began is None else now.steady - ticket.began
        for account in ticket.accounts:
            account.count(max(0, tokens - ticket.came), ticket.reserved, now)
            account.leave(lasted_s)
        if self.shared:
            self.shared.settle(ticket, tokens)
        line, caller = ticket.line, ticket.caller
        if line and ticket.place:
            if ticket.place != ticket.id:  # it has waited, and was charged for its turn
                line.queue.correct(caller.tenant, caller.priority, sum(ticket.estimate) - tokens)
            line.free()

    def marks(self, caller: Caller) -> Headers:
        """What every answer to a caller with limits a minute bears: OpenAI's x-ratelimit headers."""
        quota = caller.quota
        if quota is UNLIMITED or (quota.rpm is None and quota.tpm is None):
            return ()
        account = self._account(caller)
        shared = self.shared is not None and self.shared.is_up
        return as_headers(quota, account.known if shared and account.known else account.standing(self._steady()))

    def now(self) -> Moment:
        wall = self._wall()
        return Moment(self._steady(), wall, self._calendar.turn_to(wall))

    def _ticket(self, caller: Caller, model: str, estimate: Estimate) -> Ticket:
        account = None if caller.quota is UNLIMITED else self._account(caller)
        return Ticket(self, next(self._numbers), caller, account, self.lines.get(model), estimate)

    def _account(self, caller: Caller) -> Account:
        account = self._accounts.get(caller.id)
        if account is None:
            account = self._accounts[caller.id] = Account()
            spent = self._spent.pop(caller.id, None)
            if spent:
                spent.lay_down(account.budget, self.now().calendar)
        return account

    def _sweep(self) -> None:
        """Counts what has come, keeps the leases, forgets who has not been here for long."""
        try:
            for ticket in list(self.live):
                self._count(ticket)
            if self.shared:
                self.shared.renew(self.live)
            self._sweeps += 1
            if self._sweeps % FORGET_EVERY == 0:
                now = self.now()
                self._accounts = {id: account for id, account in self._accounts.items() if not account.is_idle(now)}
        finally:
            self._sweeping = asyncio.get_running_loop().call_later(EVERY_S, self._sweep) if self.live else None

    def _count(self, ticket: Ticket) -> None:
        """Whatever one of them runs into, what came of the others is counted, and the leases of all are kept."""
        try:
            ticket.count(ticket.progress())
        except Exception:  # one request's own trouble, which would end the leases of all
            if ticket.progress is not nothing_came:
                log.exception("what has come of a request cannot be counted before it ends")
            ticket.progress = nothing_came

    def _error(self, refusal: Refusal, ticket: Ticket | None, line: Line | None) -> PenstockError:
        """`ticket`: whose key's limit it is; None: it is the model's."""
        of = "key" if ticket else "model"
        metrics.shed.inc(line.name if line else "", f"{of}-{refusal.limit}")
        retry_s = in_whole_s(refusal.retry_s)
        if ticket is None:
            assert line
            what = WHAT[refusal.limit].format(line.quota)
            return Overloaded(f"{line.name} takes {what}; try again in {retry_s} s", retry_after_s=retry_s)
        kind = OverBudget if refusal.limit in ("day", "month") else RateLimited
        what = WHAT[refusal.limit].format(ticket.caller.quota)
        return kind(f"this key's limit is {what}; try again in {retry_s} s", retry_after_s=retry_s)


WHAT = {
    "requests": "{0.rpm} requests a minute",
    "tokens": "{0.tpm} tokens a minute",
    "concurrent": "{0.concurrent} requests at once",
    "day": "{0.daily_tokens} tokens a day (UTC)",
    "month": "{0.monthly_tokens} tokens a month (UTC)",
}


def of_both(account: Account | None, line: Line | None) -> tuple[Account, ...]:
    if line is None:
        return (account,) if account else ()
    return (account, line.account) if account else (line.account,)


def nothing_came() -> int:
    return 0


def is_limited(model: Model) -> bool:
    return (model.rpm, model.tpm, model.concurrent) != (None, None, None)


def sharing(state: State) -> Shared | None:
    """By Redis, if there is one."""
    if state.redis is None:
        return None
    from serving.shared_limits import SharedLimits

    return SharedLimits(state.redis.get_secret_value(), state.redis_lost)


def check_shared(config: Config, limited_keys: Iterable[str] = ()) -> None:
    """Raises StartError where limits could not be held: several processes, each of which would count for itself.

    Asked at the start, with the names of the keys that have limits, and again when such a key is first seen: a gateway
    that runs then goes on, says so in its log, and each of its processes holds the limits by itself.
    """
    if config.gateway.workers == 1 or config.state.redis:
        return
    models = [f"models.{name}" for name, model in config.models.items() if is_limited(model)]
    names = [*models, *(f"the key {name!r}" for name in limited_keys)]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise StartError(
            f"limits of {', '.join(names[:3])}{more} hold across {config.gateway.workers} workers only with Redis: set "
            "state.redis to redis://HOST:PORT/0, or gateway.workers to 1"
        )
