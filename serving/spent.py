"""The tokens that keys have used this day and month, as the ledger's table has them: a restart forgets no budget, and
neither does a Redis that goes."""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from penstock import batches
from penstock.store import UNAVAILABLE, Store, reason
from penstock.tables import usage
from serving.windows import Budget, Calendar

log = logging.getLogger(__name__)

READ_WITHIN_S = 1.0
MOST_AT_ONCE = 10_000
"""Keys that are asked for in one query: databases take some thirty thousand parameters."""


@dataclass(frozen=True, slots=True)
class Spent:
    day: str
    in_day: int = 0
    in_month: int = 0

    @property
    def month(self) -> str:
        return self.day[:7]

    def lay_down(self, budget: Budget, calendar: Calendar) -> None:
        """No less was spent, whatever is known of it here. It is of the day on which it was read."""
        if calendar.month == self.month:
            in_day = self.in_day if calendar.day == self.day else 0
            budget.set(max(in_day, budget.in_day(calendar)), max(self.in_month, budget.in_month(calendar)), calendar)


class SpentReads:
    """What single keys have used, as many as ask at once: those that come while a read is under way share the next, so
    that each waits for two at most. `calendar` is today's."""

    def __init__(self, store: Store, calendar: Calendar) -> None:
        self._store = store
        self._calendar = calendar
        self._asked: list[tuple[str, asyncio.Future[Spent | None]]] = []
        self._reading: asyncio.Task[None] | None = None
        self._lost = False

    async def spent_by(self, key: str) -> Spent | None:
        """None: the database does not answer."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Spent | None] = loop.create_future()
        self._asked.append((key, answer))
        if self._reading is None:
            self._reading = loop.create_task(self._read_on())
        return await answer

    async def close(self) -> None:
        if self._reading:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _read_on(self) -> None:
        asked = self._asked
        try:
            while self._asked:
                asked, self._asked = self._asked[:MOST_AT_ONCE], self._asked[MOST_AT_ONCE:]
                known = await self._read({key for key, _ in asked})
                for key, answer in asked:
                    if not answer.done():
                        answer.set_result(known[key] if known else None)
        finally:
            self._reading = None
            for _, answer in (*asked, *self._asked):
                if not answer.done():
                    answer.set_result(None)

    async def _read(self, keys: Collection[str]) -> dict[str, Spent] | None:
        nothing = Spent(self._calendar.day)
        try:
            async with asyncio.timeout(READ_WITHIN_S):
                known = await spent(self._store, self._calendar, usage.c.key_id.in_(keys))
        except Exception as error:  # whatever it is, those who ask are not kept waiting
            self._failed(error)
            return None
        if self._lost:
            log.warning("what keys have used can be read again")
        self._lost = False
        return {key: known.get(key, nothing) for key in keys}

    def _failed(self, error: Exception) -> None:
        if not self._lost:
            unforeseen = None if isinstance(error, UNAVAILABLE) else error  # TimeoutError is an OSError
            log.error(
                "what keys have used cannot be read; where Redis does not know it, limits go on as without Redis: %s",
                reason(error),
                exc_info=unforeseen,
            )
        self._lost = True


async def spent_by_all(store: Store, calendar: Calendar) -> dict[str, Spent]:
    """Every key that has used any this month."""
    return await spent(store, calendar, sa.true())


async def spent_by(store: Store, calendar: Calendar, keys: Collection[str]) -> dict[str, Spent]:
    """These keys, and others where these are too many for one query."""
    return await spent(store, calendar, usage.c.key_id.in_(keys) if len(keys) <= MOST_AT_ONCE else sa.true())


async def spent(store: Store, calendar: Calendar, whose: sa.ColumnElement[bool]) -> dict[str, Spent]:
    day = calendar.day
    tokens = usage.c.prompt_tokens + usage.c.completion_tokens
    of_day = sa.func.sum(sa.case((usage.c.day == day, tokens), else_=0))
    query = (
        sa.select(usage.c.key_id, of_day, sa.func.sum(tokens))
        .where(usage.c.day >= f"{calendar.month}-01", usage.c.day <= f"{calendar.month}-31", whose)
        .group_by(usage.c.key_id)
    )
    await batches.add_up_before_reading(store)
    async with store.read() as connection:
        rows = await connection.execute(query)
        return {key: Spent(day, int(in_day), int(in_month)) for key, in_day, in_month in rows}
