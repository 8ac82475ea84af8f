"""Usage in batches, with SQLite and with Postgres: each counts once, whoever adds them up, and however often."""

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa

from penstock import batches
from penstock.store import Store, opened
from penstock.tables import noted, usage
from penstock.used import used

pytestmark = pytest.mark.anyio

DAY = "2026-11-22"


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with opened(database) as store:
        yield store


def row(key: int, requests: int) -> batches.Row:
    return (f"k{key}", "m", DAY, f"tenant {key}", "team", requests, 10 * requests, 0, requests, 0, 0, 0)


async def waiting(store: Store) -> int:
    async with store.read() as connection:
        return (await connection.execute(sa.select(sa.func.count()).select_from(noted))).scalar_one()


async def test_who_reads_sees_all_that_was_written(store: Store) -> None:
    await batches.write(store, "a", [row(1, 2), row(2, 3)])
    await batches.write(store, "b", [row(1, 5)])
    rows = await used(store, ["key"])
    assert [(one["key_id"], one["requests"], one["prompt_tokens"]) for one in rows] == [("k1", 7, 70), ("k2", 3, 30)]
    assert await waiting(store) == 0


async def test_more_batches_than_are_added_at_once_written_and_added_by_many_at_once(store: Store) -> None:
    random = Random(1)
    written = {f"{number:032x}": [row(key, random.randrange(9)) for key in range(20)] for number in range(100)}

    async def write(names: list[str]) -> None:
        for name in names:
            await batches.write(store, name, written[name])
            if random.random() < 0.2:
                await batches.add_up(store)

    names = sorted(written)
    await asyncio.gather(*(write(names[start::4]) for start in range(4)), write(names[:30]))
    rows = await used(store, ["key"])
    expected = {f"k{key}": sum(rows[key][5] for rows in written.values()) for key in range(20)}
    assert {one["key_id"]: one["requests"] for one in rows} == expected


async def test_what_was_not_added_is_not_lost_when_adding_fails(store: Store) -> None:
    await batches.write(store, "a", [row(1, 1)])
    async with store.begin() as connection:
        await connection.execute(noted.insert().values(batch="b", rows="[[1]]"))
    with pytest.raises(ValueError, match="zip"):
        await batches.add_up(store)
    async with store.begin() as connection:
        await connection.execute(sa.delete(noted).where(noted.c.batch == "b"))
    await batches.add_up(store)
    async with store.read() as connection:
        found: list[Any] = [*(await connection.execute(sa.select(usage.c.requests))).scalars()]
    assert found == [1]
