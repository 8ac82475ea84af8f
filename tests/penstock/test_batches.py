"""Usage in batches, with SQLite and with Postgres: each counts once, whoever adds them up, and however often."""

import asyncio
from collections.abc import AsyncIterator
from random import Random

import orjson
import pytest
import sqlalchemy as sa

from penstock import batches
from penstock.store import Store, opened
from penstock.tables import noted
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


@pytest.mark.parametrize(
    "document",
    ["", "[[1]]", '{"columns": ["key_id"], "rows": [[1, 2]]}', '{"columns": ["day"], "rows": [["2026-11-22"]]}'],
)
async def test_a_batch_that_cannot_be_added_is_in_no_others_way(store: Store, document: str) -> None:
    await batches.write(store, "a", [row(1, 1)])
    async with store.begin() as connection:
        await connection.execute(noted.insert().values(batch="b", rows=document))
    await batches.write(store, "c", [row(1, 2)])
    (found,) = await used(store, [])
    assert found["requests"] == 3
    assert await waiting(store) == 1  # for a person to look at
    await batches.write(store, "d", [row(1, 4)])
    (found,) = await used(store, [])
    assert found["requests"] == 7


async def test_what_postgres_will_not_take_is_in_no_others_way(store: Store) -> None:
    if store.is_sqlite:
        pytest.skip("SQLite takes text of any length")
    await batches.write(store, "a", [row(1, 1), ("k1", "m" * 600, *row(1, 1)[2:])])
    await batches.write(store, "b", [row(2, 2)])
    (found,) = await used(store, [])
    assert found["requests"] == 2
    assert await waiting(store) == 1


async def test_a_column_that_a_batch_does_not_know_is_none(store: Store) -> None:
    """It was written before there was that column, or by a gateway that is older."""
    known = [*batches.COLUMNS[:-1]]
    document = orjson.dumps({"columns": known, "rows": [row(1, 1)[:-1]]}).decode()
    async with store.begin() as connection:
        await connection.execute(noted.insert().values(batch="a", rows=document))
    (found,) = await used(store, [])
    assert (found["requests"], found[batches.COLUMNS[-1]]) == (1, 0)


async def test_while_another_process_adds_nobody_waits_long(store: Store) -> None:
    if store.is_sqlite:
        pytest.skip("of SQLite there is one writer")
    await batches.write(store, "a", [row(1, 1)])
    async with store.begin() as other:
        await batches.alone(other, wait=True)
        await batches.add_up(store, wait=False)
        assert await waiting(store) == 1
        await batches.write(store, "b", [row(1, 1)])
        assert await used(store, ["key"]) == []  # after LOCK_S, and the log says so
    (found,) = await used(store, [])
    assert found["requests"] == 2
