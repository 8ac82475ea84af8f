"""The tokens that keys have used this day and month, as the ledger's table has them: a restart forgets no budget, and
neither does a Redis that goes."""

from dataclasses import dataclass

import sqlalchemy as sa

from penstock.batches import add_up_before_reading
from penstock.store import Store
from penstock.tables import usage
from serving.windows import Budget, Calendar


@dataclass(frozen=True, slots=True)
class Spent:
    day: str
    in_day: int = 0
    in_month: int = 0

    def lay_down(self, budget: Budget, calendar: Calendar) -> None:
        """No less was spent, whatever is known of it here. It is of the day on which it was read."""
        if calendar.month == self.day[:7]:
            in_day = self.in_day if calendar.day == self.day else 0
            budget.set(max(in_day, budget.in_day(calendar)), max(self.in_month, budget.in_month(calendar)), calendar)


async def spent_by_all(store: Store, calendar: Calendar) -> dict[str, Spent]:
    """Every key that has used any this month."""
    return await spent(store, calendar, sa.true())


async def spent_by(store: Store, calendar: Calendar, key: str) -> Spent:
    return (await spent(store, calendar, usage.c.key_id == key)).get(key, Spent(calendar.day))


async def spent(store: Store, calendar: Calendar, whose: sa.ColumnElement[bool]) -> dict[str, Spent]:
    day = calendar.day
    tokens = usage.c.prompt_tokens + usage.c.completion_tokens
    of_day = sa.func.sum(sa.case((usage.c.day == day, tokens), else_=0))
    query = (
        sa.select(usage.c.key_id, of_day, sa.func.sum(tokens))
        .where(usage.c.day >= f"{calendar.month}-01", usage.c.day <= f"{calendar.month}-31", whose)
        .group_by(usage.c.key_id)
    )
    await add_up_before_reading(store)
    async with store.read() as connection:
        rows = await connection.execute(query)
        return {key: Spent(day, int(in_day), int(in_month)) for key, in_day, in_month in rows}
