"""The audit log in both kinds of store: what `verify` finds, and what it says it cannot."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
import sqlalchemy as sa

from penstock import audit
from penstock.keyring import Keyring, rights, wanted
from penstock.store import Store, opened
from penstock.tables import audit as table
from penstock.tables import changes

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    """With five entries, and without what guards them against a slip."""
    async with opened(database) as store:
        for number in range(1, 6):
            await audit.note(store, "me", "config.reloaded", f"file {number}", number=number)
        drops = ["DROP TRIGGER audit_update", "DROP TRIGGER audit_delete"]
        async with store.begin() as connection:
            for drop in drops if store.is_sqlite else ["DROP TRIGGER audit_append_only ON audit"]:
                await connection.exec_driver_sql(drop)
        yield store


async def write(store: Store, *statements: sa.Executable) -> None:
    async with store.begin() as connection:
        for statement in statements:
            await connection.execute(statement)


def renumbered(old: int, new: int) -> sa.Executable:
    return table.update().where(table.c.number == old).values(number=new)


async def test_a_log_that_nobody_touched_is_whole(store: Store) -> None:
    verdict = await audit.verify(store)
    assert (verdict.entries, verdict.broken) == (5, None)
    assert verdict.head == (await audit.last(store, 1))[0].digest


async def test_an_empty_log_is_whole(database: str) -> None:
    async with opened(database) as store:
        assert await audit.verify(store) == audit.Verdict(0, audit.BEGINNING)


@pytest.mark.parametrize(
    "change",
    [
        {"actor": "you"},
        {"at": "2026-01-01T00:00:00.000+00:00"},
        {"details": "{}"},
        {"digest": "0" * 64},
        {"subject": ""},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_changed_entry_is_named(store: Store, change: dict[str, str]) -> None:
    await write(store, table.update().where(table.c.number == 3).values(change))
    verdict = await audit.verify(store)
    assert (verdict.broken, verdict.why) == (3, "it has been changed")


async def test_an_entry_whose_own_hash_was_made_anew_breaks_the_next(store: Store) -> None:
    third = (await audit.entries(store, 2, 1))[0]
    forged = audit.Entry(third.number, third.at, "you", third.action, third.subject, third.details, third.previous, "")
    await write(store, table.update().where(table.c.number == 3).values(actor="you", digest=forged.own_digest))
    verdict = await audit.verify(store)
    assert (verdict.broken, verdict.why) == (4, "it does not follow from the entry before")


async def test_an_entry_taken_out_is_missed(store: Store) -> None:
    await write(store, table.delete().where(table.c.number == 2))
    verdict = await audit.verify(store)
    assert (verdict.broken, verdict.why) == (2, "it is missing")


async def test_a_beginning_that_was_cut_off_is_missed(store: Store) -> None:
    await write(store, table.delete().where(table.c.number < 3))
    assert (await audit.verify(store)).broken == 1


async def test_entries_that_changed_places_are_named(store: Store) -> None:
    await write(store, renumbered(2, 99), renumbered(3, 2), renumbered(99, 3))
    assert (await audit.verify(store)).broken == 2


async def test_an_end_that_was_cut_off_is_missed(store: Store) -> None:
    await write(store, table.delete().where(table.c.number > 3))
    verdict = await audit.verify(store)
    assert (verdict.entries, verdict.broken) == (3, 4)
    assert "the end has been cut off" in verdict.why


async def test_what_is_appended_after_a_cut_shows_it(store: Store) -> None:
    await write(store, table.delete().where(table.c.number > 3))
    await audit.note(store, "me", "config.reloaded", "file 6")
    assert (await audit.verify(store)).broken == 4


async def test_an_end_cut_off_with_its_count_shows_only_beside_a_noted_digest(store: Store) -> None:
    noted = (5, (await audit.verify(store)).head)
    await write(
        store,
        table.delete().where(table.c.number > 3),
        changes.update().where(changes.c.subject == audit.SUBJECT).values(number=3),
    )
    assert (await audit.verify(store)).broken is None
    assert (await audit.verify(store, noted)).broken == 4


async def test_a_log_written_anew_shows_only_beside_a_noted_digest(store: Store) -> None:
    noted = (5, (await audit.verify(store)).head)
    await write(store, table.delete(), changes.delete().where(changes.c.subject == audit.SUBJECT))
    for number in range(6):
        await audit.note(store, "me", "config.reloaded", f"another {number}")
    assert (await audit.verify(store)).broken is None
    verdict = await audit.verify(store, noted)
    assert verdict.broken == 5
    assert "written anew" in verdict.why


async def test_a_change_that_is_rolled_back_leaves_no_entry(store: Store) -> None:
    async def fail() -> None:
        async with store.begin() as connection:
            await audit.record(store, connection, "me", "key.created", "x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert (await audit.verify(store)).entries == 5


async def test_many_at_once_make_one_chain(store: Store) -> None:
    await asyncio.gather(*(audit.note(store, "me", "config.reloaded", f"p{n}") for n in range(40)))
    verdict = await audit.verify(store)
    assert (verdict.entries, verdict.broken) == (45, None)


async def test_pages_are_joined(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "PAGE", 2)
    assert [entry.number async for entry in audit.every(store)] == [1, 2, 3, 4, 5]
    assert [entry.number for entry in await audit.last(store, 2)] == [4, 5]


async def test_every_change_of_a_key_has_its_entry_and_no_entry_a_key(store: Store) -> None:
    ring = Keyring(store, b"pepper of the tests, long enough")
    made = await ring.create(wanted({"name": "k", "rpm": 5, "models": ["m"]}), "key:root")
    await ring.update("k", rights({"rpm": 6}), "key:root")
    again = await ring.rotate("k", 60, "cli:me")
    await ring.revoke("k", "admin.key")
    said = await audit.last(store, 4)
    assert [(entry.actor, entry.action, entry.subject) for entry in said] == [
        ("key:root", "key.created", "k"),
        ("key:root", "key.updated", "k"),
        ("cli:me", "key.rotated", "k"),
        ("admin.key", "key.revoked", "k"),
    ]
    created, updated, rotated, revoked = (orjson.loads(entry.details) for entry in said)
    assert (created["id"], created["rpm"], created["models"]) == (made.stored.id, 5, ["m"])
    assert updated["changed"] == {made.stored.id: {"rpm": {"from": 5, "to": 6}}}
    assert (rotated["replaces"], rotated["overlap_s"]) == ([made.stored.id], 60)
    assert set(revoked["ids"]) == {made.stored.id, again.stored.id}
    for key in (made.key, again.key):
        assert not any(key.rpartition("-")[2] in repr(entry) for entry in said)
