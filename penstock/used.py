"""What the usage table says, added up as asked: by key, model, day, tenant."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import sqlalchemy as sa

from penstock.batches import add_up_before_reading
from penstock.store import Store
from penstock.tables import usage

By = Literal["key", "model", "day", "tenant"]
BYS: tuple[By, ...] = get_args(By)
COLUMNS = {
    "key": (usage.c.key_id, usage.c.name),
    "model": (usage.c.model,),
    "day": (usage.c.day,),
    "tenant": (usage.c.tenant,),
}
COUNTS = (
    usage.c.requests,
    usage.c.prompt_tokens,
    usage.c.cached_tokens,
    usage.c.completion_tokens,
    usage.c.cut,
    usage.c.abandoned,
    usage.c.estimated,
)


async def used(
    store: Store, by: Sequence[By], since: str | None = None, until: str | None = None, key: str | None = None
) -> list[dict[str, Any]]:
    """A row for each combination of `by`; `since` and `until` are days, such as 2026-11-22, both included. `key` is
    the name of the only one that is asked about."""
    columns = [column for name in dict.fromkeys(by) for column in COLUMNS[name]]
    sums = [sa.cast(sa.func.sum(count), sa.BigInteger).label(count.name) for count in COUNTS]
    query = sa.select(*columns, *sums).group_by(*columns).order_by(*columns)
    if since:
        query = query.where(usage.c.day >= since)
    if until:
        query = query.where(usage.c.day <= until)
    if key:
        query = query.where(usage.c.name == key)
    await add_up_before_reading(store)
    async with store.read() as connection:
        return [dict(row) for row in (await connection.execute(query)).mappings()]
