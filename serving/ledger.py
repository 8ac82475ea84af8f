"""What every key has used, by model and day: noted in memory as requests end, written in batches by a task.

The numbers are the engine's own. Where it never told them, as of a stream that was cut or whose client left, it is
asked to count: the prompt and all that came, as tokens. Only where nobody can be asked, as for a call of a composed
model that did not come to its end, they are estimated, and counted as such. A kill -9 loses what was noted since the
last batch; an ordinary end loses nothing.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import uuid4

from engine.asked import Asked
from engine.pool import Pool
from engine.reading import STREAMING, choices_wanted
from engine.replica import Replica
from engine.tokens import tokens_in, tokens_of
from penstock import batches, metrics
from penstock.callers import Caller
from penstock.errors import EngineError, PenstockError
from penstock.store import UNAVAILABLE, Store, reason
from serving.meter import Meter, tokens_in_piece

if TYPE_CHECKING:
    from serving.tally import Tally

log = logging.getLogger(__name__)

EVERY_S = 0.5
COUNTING = 8
"""How many requests are counted by engines at once; what waits longer than COUNT_WITHIN_S is estimated."""
COUNT_WITHIN_S = 2.0
COUNT_TRIES = 3
LOOK_S = 0.05
ADD_EVERY_S = 10.0
"""Who reads the usage adds it up before."""
MOST_TOKENS = 2**40
"""Of one request: far more than any engine could, and far less than a database's integers hold."""
Where = tuple[str, str, str]  # key, model, day


@dataclass(slots=True)
class Cost:
    """What is known of a request that an engine was asked, while it runs and when it is over. A composed model, which
    asks as often as it has to, has a `meter` instead."""

    asked: Asked | None = None
    pool: Pool | None = None
    usage: Mapping[str, Any] | None = None
    meter: Meter | None = None
    beside: Meter | None = None
    """What the guards of a request have asked that generates nothing."""
    streamed: bool = False
    """Of a composed model's answer, whether it streams."""
    texts: Sequence[Sequence[str]] = ()
    """The pieces of all that was generated: each choice's text, reasoning and calls of tools in lists of their own."""
    tally: "Tally | None" = None
    """Who counts how it ends, while its model has a canary."""

    @property
    def sent(self) -> bool:
        """Whether any engine has seen it."""
        return self.asked is None or self.asked.sent

    incredible: bool = False


@dataclass(slots=True)
class Used:
    """Tokens of one request, or of many."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 1
    cut: int = 0
    abandoned: int = 0
    estimated: int = 0

    def add(self, other: "Used") -> None:
        for name in FIGURES:
            setattr(self, name, getattr(self, name) + getattr(other, name))


FIGURES = tuple(each.name for each in fields(Used))
figures_of = attrgetter(*batches.COUNTS)


@dataclass(slots=True)
class Rows:
    """What is to be written: sums, and whom they are of."""

    sums: dict[Where, Used] = field(default_factory=dict)
    callers: dict[str, Caller] = field(default_factory=dict)

    def add(self, caller: Caller, model: str, day: str, used: Used) -> None:
        self.callers[caller.id] = caller
        sum_ = self.sums.get((caller.id, model, day))
        if sum_ is None:
            self.sums[caller.id, model, day] = used
        else:
            sum_.add(used)

    def as_rows(self) -> Iterator[batches.Row]:
        """As `penstock.batches.COLUMNS` has them."""
        for where, used in self.sums.items():
            caller = self.callers[where[0]]
            yield *where, caller.tenant, caller.name, *figures_of(used)


class Ledger:
    """`note` at the end of each request; `run` beside everything else, until cancelled."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._noted = Rows()
        self._lost = False
        self._writing: tuple[str, Rows] | None = None
        self._counting: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(COUNTING)

    def note(self, caller: Caller, model: str, cost: Cost, *, gone: bool, cut: bool) -> None:
        """A request is over. Nothing here waits."""
        used = used_of(cost)
        if used is None:
            task = asyncio.get_running_loop().create_task(self._count(caller, model, cost, gone=gone, cut=cut))
            self._counting.add(task)
            task.add_done_callback(self._counting.discard)
            return
        used.abandoned, used.cut = int(gone), int(cut)
        self._noted.add(caller, model, today(), used)

    async def _count(self, caller: Caller, model: str, cost: Cost, *, gone: bool, cut: bool) -> None:
        day = today()
        used = estimated(cost)
        try:
            async with asyncio.timeout(COUNT_WITHIN_S):
                used = await counted(cost, self._slots)
        except (PenstockError, TimeoutError) as error:
            log.debug("tokens are estimated: %s", error)
        finally:  # cancelled too: at the end there is no time to ask
            used.abandoned, used.cut = int(gone), int(cut)
            self._noted.add(caller, model, day, used)

    async def run(self) -> None:
        """Writes twice a second; when it is cancelled, what is left."""
        adding = asyncio.create_task(self._add_up())
        try:
            while True:
                await asyncio.sleep(EVERY_S)
                await self._flush()
        finally:
            adding.cancel()
            await asyncio.wait([adding])
            await self.close()

    async def _add_up(self) -> NoReturn:
        """Beside the writing, which does not wait for it. What cannot be added now is added later: it is written."""
        while True:
            await asyncio.sleep(ADD_EVERY_S)
            try:
                await batches.add_up(self.store, wait=False)
            except (
                Exception
            ) as error:  # whatever it is, it is tried again: without this task the table would stand still
                unforeseen = None if isinstance(error, UNAVAILABLE) else error
                log.warning("usage is written, and not yet added up: %s", reason(error), exc_info=unforeseen)

    async def close(self) -> None:
        for task in list(self._counting):
            task.cancel()
        await asyncio.gather(*self._counting, return_exceptions=True)
        while self._noted.sums or self._writing:
            if not await self._flush():
                log.error("usage is lost: %s", self._unwritten())
                return

    def _unwritten(self) -> list[tuple[Where, Used]]:
        unwritten = [self._noted, self._writing[1]] if self._writing else [self._noted]
        return [row for rows in unwritten for row in rows.sums.items()]

    async def _flush(self) -> bool:
        """Whether everything noted until now is written. A batch that may have been is not written twice."""
        if self._writing is None:
            if not self._noted.sums:
                return True
            self._writing, self._noted = (uuid4().hex, self._noted), Rows()
        try:
            batch, rows = self._writing
            await batches.write(self.store, batch, rows.as_rows())
        except Exception as error:  # whatever it is, what is noted is kept and tried again
            metrics.usage_unwritten.set(1)
            unforeseen = None if isinstance(error, UNAVAILABLE) else error
            log.log(
                logging.DEBUG if self._lost else logging.ERROR,
                "usage is kept until the database takes it: %s",
                reason(error),
                exc_info=unforeseen,
            )
            self._lost = True
            return False
        self._lost = False
        metrics.usage_unwritten.set(0)
        self._writing = None
        return True


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def used_of(cost: Cost) -> Used | None:
    """With what guards have asked beside the engine; None as `engines_own` has it."""
    used = engines_own(cost)
    if used and cost.beside:
        beside = of_meter(cost.beside)
        beside.requests = 0
        used.add(beside)
    return used


def of_meter(meter: Meter) -> Used:
    usage, estimated = meter.told()
    return Used(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, estimated=int(estimated))


def engines_own(cost: Cost) -> Used | None:
    """What the engine says that it has counted, in any family's words; None if it is a generation of which it said
    nothing, or nothing plausible.

    {"prompt_tokens": 9, "completion_tokens": 3}, {"input_tokens": 9, "output_tokens": 3}.
    """
    said = cost.usage
    if cost.incredible:
        return None
    if cost.meter is not None:
        return of_meter(cost.meter)
    if said is None:
        return None if cost.asked is not None and cost.asked.path in STREAMING else Used()
    prompt = said.get("prompt_tokens", said.get("input_tokens"))
    completion = said.get("completion_tokens", said.get("output_tokens", 0))
    details = said.get("prompt_tokens_details") or said.get("input_tokens_details") or {}
    cached = (details.get("cached_tokens") if isinstance(details, dict) else 0) or 0
    if not plausible(cost, prompt, completion, cached):
        cost.incredible = True
        metrics.usage_implausible.inc()
        log.warning("the engine's usage cannot be: %s", said)
        return None
    assert isinstance(prompt, int)
    return Used(prompt, cached, completion or 0)


def tokens_of_both(cost: Cost) -> int:
    """Prompt and answer, as far as it is known without asking."""
    used = used_of(cost) or estimated(cost)
    return used.prompt_tokens + used.completion_tokens


def plausible(cost: Cost, prompt: Any, completion: Any, cached: Any) -> bool:
    """Whether an answer like this can have cost so much: counts, no more than was allowed, no less than came."""
    counts = (prompt, completion if completion is not None else 0, cached)
    if any(type(count) is not int or not 0 <= count < MOST_TOKENS for count in counts):
        return False
    body = cost.asked.body if cost.asked else {}
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("max_output_tokens")
    if type(limit) is int and limit > 0 and counts[1] > limit * choices_wanted(body):
        return False
    return cached <= prompt and prompt > 0 and (counts[1] > 0 or not any(map(any, cost.texts)))


async def counted(cost: Cost, slots: asyncio.Semaphore) -> Used:
    """The engine's own count of the prompt, and of all that came. Raises PenstockError."""
    asked, pool = cost.asked, cost.pool
    if asked is None or pool is None:
        return estimated(cost)
    for _ in range(COUNT_TRIES - 1):
        with suppress(EngineError):  # it may have been killed just now: another can count as well
            return await counted_by(await one_usable(pool), asked, cost, slots)
        await asyncio.sleep(LOOK_S)
    return await counted_by(await one_usable(pool), asked, cost, slots)


async def counted_by(replica: Replica, asked: Asked, cost: Cost, slots: asyncio.Semaphore) -> Used:
    """The slot is taken when there is a replica: others' engines could use it."""
    async with slots:
        prompt = len(await tokens_of(asked, replica))
        if not prompt:
            return estimated(cost)
        texts = filter(None, map("".join, cost.texts))  # one by one, or words of two would join
        return Used(prompt, 0, sum([await tokens_in(text, asked, replica) for text in texts]))


async def one_usable(pool: Pool) -> Replica:
    """Waits for one: that which has just failed is being looked at."""
    while (replica := next((replica for replica in pool.replicas if replica.usable), None)) is None:
        await asyncio.sleep(LOOK_S)
    return replica


def estimated(cost: Cost) -> Used:
    """Four characters a token for the prompt; a piece of a stream is a token, most often."""
    prompt = cost.asked.hint.prompt_tokens if cost.asked else 0
    return Used(prompt, 0, sum(tokens_in_piece(piece) for pieces in cost.texts for piece in pieces), estimated=1)
