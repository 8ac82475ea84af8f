"""Aliases as they are followed: what has moved is told once, whatever becomes of the database."""

import asyncio
from collections.abc import Collection
from pathlib import Path

import pytest
import sqlalchemy as sa

from penstock.references import Reference
from penstock.store import Store, opened
from penstock.tables import alias_moves, changes
from penstock.tables import aliases as table
from registry.adding import About, add
from registry.aliases import move
from registry.artifacts import artifacts_at
from serving import following
from serving.following import Following
from tests.databases import save
from tests.registry.conftest import safetensors

pytestmark = pytest.mark.anyio
PRODUCTION, CANDIDATE = Reference("demo", "production"), Reference("demo", "candidate")


def ignored(_: Collection[Reference]) -> None:
    pass


async def filled(store: Store, tmp_path: Path) -> None:
    """Three versions of `demo`."""
    for number in range(3):
        made = tmp_path / f"made-{number}"
        made.mkdir()
        (made / "config.json").write_text("{}")
        (made / "model.safetensors").write_bytes(safetensors(number))
        await add(store, artifacts_at(str(tmp_path / "kept")), made, About("demo"), "me")


async def test_a_move_is_told_once(database: str, tmp_path: Path) -> None:
    async with opened(database) as store:
        await filled(store, tmp_path)
        looking = Following(store, ignored, lambda: True)
        assert not await looking.look()
        await move(store, "production", Reference("demo", 1), None, "me")
        await move(store, "candidate", Reference("demo", 2), None, "me")
        assert set(await looking.look()) == {PRODUCTION, CANDIDATE}
        assert not await looking.look()
        await move(store, "production", Reference("demo", 2), 1, "me")
        assert set(await looking.look()) == {PRODUCTION}
        await move(store, "production", Reference("demo", 3), 2, "me")
        await move(store, "production", Reference("demo", 2), 3, "me")
        assert set(await looking.look()) == {PRODUCTION}  # it was elsewhere meanwhile: whoever gave up looks again


async def test_a_database_that_was_put_back_is_read_as_a_whole(database: str, tmp_path: Path) -> None:
    async with opened(database) as store:
        await filled(store, tmp_path)
        await move(store, "production", Reference("demo", 1), None, "me")
        looking = Following(store, ignored, lambda: True)
        await looking.look()
        await move(store, "production", Reference("demo", 2), 1, "me")
        await move(store, "candidate", Reference("demo", 2), None, "me")
        await looking.look()
        async with store.begin() as connection:  # as it was before these two moves
            await connection.execute(alias_moves.delete().where(alias_moves.c.change > 1))
            await connection.execute(table.delete().where(table.c.alias == "candidate"))
            await connection.execute(table.update().values(version=1, change=1))
            await connection.execute(sa.update(changes).where(changes.c.subject == "aliases").values(number=1))
        assert set(await looking.look()) == {PRODUCTION, CANDIDATE}
        assert not await looking.look()
        await move(store, "production", Reference("demo", 3), 1, "me")
        assert set(await looking.look()) == {PRODUCTION}


async def test_a_restore_that_is_followed_by_other_moves_before_the_next_look_is_seen(
    database: str, tmp_path: Path
) -> None:
    """Its number has fallen, and has risen to the same again, or beyond."""
    async with opened(database) as store:
        await filled(store, tmp_path)
        await move(store, "production", Reference("demo", 1), None, "me")
    saved = await save(database, tmp_path)
    for more in (2, 3):
        await saved.put_back()
        async with opened(database) as store:
            looking = Following(store, ignored, lambda: True)
            await move(store, "production", Reference("demo", 2), 1, "me")
            await move(store, "candidate", Reference("demo", 2), None, "me")
            assert set(await looking.look()) == {PRODUCTION, CANDIDATE}
            await saved.put_back()
            for number in range(more):
                await move(store, f"other-{number}", Reference("demo", 1), None, "me")
            others = {Reference("demo", f"other-{number}") for number in range(more)}
            assert set(await looking.look()) == {PRODUCTION, CANDIDATE, *others}
            assert not await looking.look()


async def test_aliases_that_come_back_after_their_number_are_seen(database: str, tmp_path: Path) -> None:
    """As while a dump is being put back, table by table."""
    async with opened(database) as store:
        await filled(store, tmp_path)
        await move(store, "production", Reference("demo", 1), None, "me")
        looking = Following(store, ignored, lambda: True)
        assert await looking.look()
        async with store.begin() as connection:
            kept = (await connection.execute(sa.select(table))).mappings().all()
            await connection.execute(table.delete())
            await connection.execute(sa.update(changes).where(changes.c.subject == "aliases").values(number=0))
        assert set(await looking.look()) == {PRODUCTION}
        async with store.begin() as connection:
            await connection.execute(sa.update(changes).where(changes.c.subject == "aliases").values(number=1))
        assert not await looking.look()
        async with store.begin() as connection:
            await connection.execute(table.insert(), [dict(row) for row in kept])
        assert set(await looking.look()) == {PRODUCTION}
        assert not await looking.look()


async def test_a_database_that_does_not_answer_is_told_once_and_followed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(following, "POLL_S", 0.02)
    told: list[Reference] = []
    async with opened(f"sqlite:///{tmp_path / 'penstock.db'}") as store:
        await filled(store, tmp_path)
        run = asyncio.create_task(Following(store, told.extend, lambda: True).run())
        try:
            async with store.begin() as connection:
                await connection.execute(sa.text("ALTER TABLE changes RENAME TO away"))
            async with asyncio.timeout(10):
                while "moves of aliases wait" not in caplog.text:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)
            async with store.begin() as connection:
                await connection.execute(sa.text("ALTER TABLE away RENAME TO changes"))
            await move(store, "production", Reference("demo", 1), None, "me")
            async with asyncio.timeout(10):
                while PRODUCTION not in told or "aliases are followed" not in caplog.text:
                    await asyncio.sleep(0.02)
        finally:
            run.cancel()
            await asyncio.wait([run])
    assert caplog.text.count("moves of aliases wait") == 1


async def test_where_nothing_is_referred_to_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_S", 0.01)
    asked = []
    async with opened(f"sqlite:///{tmp_path / 'penstock.db'}") as store:
        sa.event.listen(store.engine.sync_engine, "before_cursor_execute", lambda *said: asked.append(said[2]))
        run = asyncio.create_task(Following(store, ignored, lambda: False).run())
        await asyncio.sleep(0.2)
        run.cancel()
        await asyncio.wait([run])
    assert not asked
