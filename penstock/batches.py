"""Usage as gateways write it: a batch is one row, however many keys it is about. Added to the usage table now and
then, and before anybody reads that.

A batch costs a gateway the same for one key as for ten thousand, and many gateways do not wait for each other's rows.
"""

import time
from collections.abc import Iterable
from typing import Any

import orjson
import sqlalchemy as sa

from penstock.store import Store
from penstock.tables import batches, noted, usage

ADDING = 5067_1123  # any number of ours: who holds the lock of this name adds
ADDED_AT_ONCE = 20
KEEP_S = 3600.0
WHERE = ("key_id", "model", "day")
COUNTS = tuple(column.name for column in usage.columns if isinstance(column.type, sa.BigInteger))
COLUMNS = (*WHERE, "tenant", "name", *COUNTS)
"""What stands in a row of a batch, in this order."""
FIRST_COUNT = COLUMNS.index(COUNTS[0])
Row = tuple[Any, ...]


async def write(store: Store, batch: str, rows: Iterable[Row]) -> None:
    """Once, also when it is called again because nobody knew whether it had succeeded."""
    async with store.begin() as connection:
        new = store.insert(batches).values(id=batch, at=time.time()).on_conflict_do_nothing()
        if (await connection.execute(new)).rowcount:
            await connection.execute(noted.insert().values(batch=batch, rows=orjson.dumps([*rows]).decode()))


async def add_up(store: Store) -> None:
    """Everything that was written before this was called is in the usage table afterwards."""
    while await add_some(store):
        pass


async def add_some(store: Store) -> bool:
    """Whether there may be more. Of several processes one adds, the others wait."""
    async with store.begin() as connection:
        if not store.is_sqlite:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADDING)))
        found = (await connection.execute(sa.select(noted).order_by(noted.c.batch).limit(ADDED_AT_ONCE))).all()
        if not found:
            return False
        insert = store.insert(usage)
        more = {name: usage.c[name] + insert.excluded[name] for name in COUNTS}
        sums = summed(rows for _, rows in found)
        await connection.execute(
            insert.on_conflict_do_update(index_elements=WHERE, set_=more),
            [dict(zip(COLUMNS, row, strict=True)) for row in sums],
        )
        await connection.execute(sa.delete(noted).where(noted.c.batch.in_([batch for batch, _ in found])))
        await connection.execute(sa.delete(batches).where(batches.c.at < time.time() - KEEP_S))
    return len(found) == ADDED_AT_ONCE


def summed(documents: Iterable[str]) -> list[list[Any]]:
    """One row for each key, model and day."""
    sums: dict[Row, list[Any]] = {}
    for document in documents:
        for row in orjson.loads(document):
            where = tuple(row[: len(WHERE)])
            if before := sums.get(where):
                row[FIRST_COUNT:] = map(int.__add__, before[FIRST_COUNT:], row[FIRST_COUNT:])
            sums[where] = row
    return [*sums.values()]
