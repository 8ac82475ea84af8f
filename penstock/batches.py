"""Usage as gateways write it: a batch is one row, however many keys it is about. Added to the usage table now and
then, and before anybody reads that.

A batch costs a gateway the same for one key as for ten thousand, and gateways do not wait for each other's rows.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock import metrics
from penstock.store import UNAVAILABLE, Store, reason
from penstock.tables import batches, noted, usage

log = logging.getLogger(__name__)

ADDING = 5067_1123  # any number of ours: who holds the lock of this name adds
ADDED_AT_ONCE = 20
LOCK_S = 2
IDLE_S = 10
"""A process that is stopped while it adds loses the lock after so long."""
KEEP_S = 7 * 24 * 3600.0
WHERE = ("key_id", "model", "day")
COUNTS = tuple(column.name for column in usage.columns if isinstance(column.type, sa.BigInteger))
COLUMNS = (*WHERE, "tenant", "name", *COUNTS)
"""What stands in a row of a batch, in this order."""
NONE = dict.fromkeys(COUNTS, 0)
Row = tuple[Any, ...]


async def write(store: Store, batch: str, rows: Iterable[Row]) -> None:
    """Once, also when it is called again because nobody knew whether it had succeeded."""
    async with store.begin() as connection:
        new = store.insert(batches).values(id=batch, at=time.time()).on_conflict_do_nothing()
        if (await connection.execute(new)).rowcount:
            document = orjson.dumps({"columns": COLUMNS, "rows": [*rows]}).decode()
            await connection.execute(noted.insert().values(batch=batch, rows=document))


async def add_up_before_reading(store: Store) -> None:
    """What cannot be added now is missing from what is read, and the log says so."""
    try:
        await add_up(store)
    except UNAVAILABLE as error:
        log.warning("the usage of the last seconds may be missing: %s", reason(error))


async def add_up(store: Store, wait: bool = True) -> None:
    """Everything that was written before this was called is in the usage table afterwards; unless `wait`, only if no
    other process is adding. Raises what the database does."""
    while await add_some(store, wait=wait):
        pass


async def add_some(store: Store, wait: bool) -> bool:
    """Whether there may be more. Of several processes one adds at a time."""
    async with store.begin() as connection:
        if not store.is_sqlite and not await alone(connection, wait):
            return False
        query = sa.select(noted.c.batch, noted.c.rows).where(noted.c.refused.is_(None)).order_by(noted.c.batch)
        found = [(batch, document) for batch, document in await connection.execute(query.limit(ADDED_AT_ONCE))]
        if not found:
            return False
        if not await added(store, connection, found):
            for one in found:
                if not await added(store, connection, [one]):
                    await refuse(connection, one[0])
        await connection.execute(sa.delete(batches).where(batches.c.at < time.time() - KEEP_S))
    return len(found) == ADDED_AT_ONCE


async def alone(connection: AsyncConnection, wait: bool) -> bool:
    """Whether no other process is adding until this transaction ends."""
    await connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_S}s'")
    await connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_S}s'")
    if wait:
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADDING)))
        return True
    return bool((await connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(ADDING)))).scalar_one())


async def added(store: Store, connection: AsyncConnection, found: Sequence[tuple[str, str]]) -> bool:
    """Whether they could be: all of them, or none. Raises what is no fault of theirs."""
    insert = store.insert(usage)
    more = {name: usage.c[name] + insert.excluded[name] for name in COUNTS}
    upsert = insert.on_conflict_do_update(index_elements=WHERE, set_=more)
    try:
        rows = summed(document for _, document in found)
        async with connection.begin_nested():
            await connection.execute(upsert, rows)
    except (ValueError, TypeError, KeyError) as error:
        log.debug("a batch of usage cannot be read: %s", error)
        return False
    except DBAPIError as error:
        if not is_of_the_data(error):
            raise
        log.debug("a batch of usage cannot be added: %s", reason(error))
        return False
    await connection.execute(sa.delete(noted).where(noted.c.batch.in_([batch for batch, _ in found])))
    return True


def is_of_the_data(error: DBAPIError) -> bool:
    """Whether the same rows would be refused again: in Postgres, errors of the classes 22 and 23."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return isinstance(error, DataError | IntegrityError) or state[:2] in ("22", "23")


async def refuse(connection: AsyncConnection, batch: str) -> None:
    """It stays where it is, for a person to look at, and is in nobody's way."""
    log.error("a batch of usage cannot be added and stays in the table `noted`, refused: %s", batch)
    metrics.usage_refused.inc()
    await connection.execute(sa.update(noted).where(noted.c.batch == batch).values(refused=True))


def summed(documents: Iterable[str]) -> list[dict[str, Any]]:
    """One row for each key, model and day. Raises ValueError, TypeError or KeyError for what is no batch."""
    sums: dict[Row, dict[str, Any]] = {}
    for document in documents:
        batch = orjson.loads(document)
        for values in batch["rows"]:
            row = NONE | dict(zip(batch["columns"], values, strict=True))
            where = tuple([row[name] for name in WHERE])
            if before := sums.get(where):
                for name in COUNTS:
                    before[name] += row[name]
            else:
                sums[where] = row
    return [*sums.values()]
