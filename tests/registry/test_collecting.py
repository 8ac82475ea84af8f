"""What nobody refers to is deleted, and nothing else, whatever goes on beside it."""

import asyncio
import io
import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import sqlalchemy as sa

from penstock import audit
from penstock.alone import alone
from penstock.errors import BadRequest, Conflict
from penstock.references import Reference
from penstock.store import Store, opened
from penstock.tables import claims, doomed
from penstock.tables import versions as table
from registry import versions
from registry.adding import About, add
from registry.artifacts import Artifacts, Damaged, Kept, artifacts_at
from registry.claims import CLAIM_S, COLLECTING, claim, doom, unmark
from registry.collecting import Collected, collect, delete
from registry.drafts import DRAFT
from registry.manifest import File, Manifest
from registry.resolve import resolve
from registry.versions import all_versions
from tests.registry.conftest import MakeModel, all_files
from tests.registry.test_versions import add_many

pytestmark = pytest.mark.anyio


async def test_only_what_no_version_refers_to_is_deleted(
    store: Store, artifacts: Artifacts, make_model: MakeModel
) -> None:
    model = make_model()
    version = await add(store, artifacts, model, About("a"), "me")
    left = artifacts.put(io.BytesIO(b"of an add that was killed"))
    told = await collect(store, artifacts, 0, "me", dry_run=True)
    assert [kept.sha256 for kept in told.files] == [left.sha256]
    assert artifacts.size(left.sha256) == left.size
    done = await collect(store, artifacts, 0, "me")
    assert ([kept.sha256 for kept in done.files], done.kept) == ([left.sha256], len(version.files.blobs))
    assert artifacts.size(left.sha256) is None
    _, folder = await resolve(store, artifacts, Reference("a", 1))
    assert all_files(folder) == all_files(model)
    (entry,) = await audit.last(store, 1)
    assert entry.action == "artifacts.deleted"
    await collect(store, artifacts, 0, "me")
    assert (await audit.last(store, 1))[0].number == entry.number


async def test_a_database_without_versions_deletes_no_files_of_anothers(store: Store, artifacts: Artifacts) -> None:
    left = artifacts.put(io.BytesIO(b"of a version in another database"))
    with pytest.raises(BadRequest, match=r"is state\.database the one"):
        await collect(store, artifacts, 0, "me")
    assert artifacts.size(left.sha256) == left.size


async def test_what_is_young_is_spared(store: Store, artifacts: Artifacts) -> None:
    left = artifacts.put(io.BytesIO(b"of an add that goes on"))
    assert not (await collect(store, artifacts, 3600, "me")).files
    assert artifacts.size(left.sha256) == left.size


async def test_drafts_are_deleted_when_they_are_old(store: Store, folder: Artifacts, tmp_path: Path) -> None:
    old, young = tmp_path / "kept" / f"{DRAFT}old", tmp_path / "kept" / f"{DRAFT}young"
    for draft in (old, young):
        draft.write_bytes(b"x")
    os.utime(old, (1, 1))
    assert (await collect(store, folder, 3600, "me")).drafts == 1
    assert (old.exists(), young.exists()) == (False, True)


async def test_a_version_that_came_after_the_look_is_spared_by_every_batch(
    store: Store, folder: Artifacts, make_model: MakeModel
) -> None:
    async with store.read() as connection:
        wanted, seen = await versions.referred(connection)
    version = await add(store, folder, make_model(), About("a"), "me")
    done = Collected()
    listed = [Kept(sha256, size, 0) for sha256, size in version.files.blobs.items()]
    for file in listed:  # the version is new to the first batch, known to the second
        seen = await delete(store, folder, [file], wanted, seen, done)
    assert done.files == []
    assert len(list(folder.all())) == len(listed)


async def test_a_database_put_back_to_an_earlier_state_deletes_nothing_of_the_versions_it_forgot(
    store: Store, artifacts: Artifacts, make_model: MakeModel
) -> None:
    await add(store, artifacts, make_model(), About("a"), "me")
    forgotten = await add(store, artifacts, make_model(1), About("a"), "me")
    left = artifacts.put(io.BytesIO(b"nobody's"))
    async with store.begin() as connection:
        await connection.execute(table.delete().where(table.c.number == 2))
    for dry_run in (True, False):
        done = await collect(store, artifacts, 0, "me", dry_run=dry_run)
        assert ([kept.sha256 for kept in done.files], done.strangers) == ([left.sha256], {forgotten.digest})
    assert all(artifacts.size(sha256) == size for sha256, size in forgotten.files.blobs.items())
    again = await add(store, artifacts, make_model(1), About("a"), "me")
    assert again.digest == forgotten.digest
    assert not (await collect(store, artifacts, 0, "me")).strangers


async def test_a_version_whose_note_was_not_written_is_noted_by_the_next_collection(
    store: Store, folder: Artifacts, make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    def full(what: str) -> None:
        if what == "refer":
            raise OSError(28, "No space left on device")

    version = await add(store, Watched(folder, full), make_model(), About("a"), "me")
    assert "a@1 is added, but not noted" in caplog.text
    assert folder.manifests() == set()
    await collect(store, folder, 3600, "me")
    assert folder.manifest(version.digest) == version.files


async def test_a_damaged_note_lets_nothing_be_deleted(
    store: Store, folder: Artifacts, make_model: MakeModel, tmp_path: Path
) -> None:
    await add(store, folder, make_model(), About("a"), "me")
    left = folder.put(io.BytesIO(b"of a version that this database has forgotten"))
    (tmp_path / "kept" / "manifests" / f"{'0' * 64}.json").write_text("{}")
    with pytest.raises(Damaged, match="nobody knows which of them it names"):
        await collect(store, folder, 0, "me")
    assert folder.size(left.sha256) == left.size


class Watched:
    """Artifacts that call `before` before a file is kept or deleted."""

    def __init__(self, inner: Artifacts, before: Callable[[str], None]) -> None:
        self.inner = inner
        self.before = before

    def put(self, source: BinaryIO, file: File | None = None) -> File:
        self.before("put")
        return self.inner.put(source, file)

    def delete(self, sha256: str) -> None:
        self.before("delete")
        self.inner.delete(sha256)

    def size(self, sha256: str) -> int | None:
        return self.inner.size(sha256)

    def fetch(self, file: File, target: Path, *, link: bool = True) -> None:
        self.inner.fetch(file, target, link=link)

    def refer(self, manifest: Manifest) -> None:
        self.before("refer")
        self.inner.refer(manifest)

    def manifests(self) -> set[str]:
        return self.inner.manifests()

    def manifest(self, digest: str) -> Manifest:
        return self.inner.manifest(digest)

    def all(self) -> Iterator[Kept]:
        return self.inner.all()

    def tidy(self, before: float) -> int:
        return self.inner.tidy(before)


async def test_nobody_waits_for_the_database_while_files_are_kept_and_deleted(
    folder: Artifacts, make_model: MakeModel, tmp_path: Path
) -> None:
    file = tmp_path / "penstock.db"
    seen: list[str] = []

    def writes(what: str) -> None:
        with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")  # refused while anybody writes
        seen.append(what)

    async with opened(f"sqlite:///{file}") as store:
        watched = Watched(folder, writes)
        await add(store, watched, make_model(), About("a"), "me")
        folder.put(io.BytesIO(b"nobody's"))
        await collect(store, watched, 0, "me")
    assert seen == [*["put"] * 4, "refer", "delete"]


async def test_what_an_add_has_claimed_is_spared_without_any_grace_until_the_claim_runs_out(
    store: Store, folder: Artifacts, make_model: MakeModel
) -> None:
    version = await add(store, folder, make_model(), About("a"), "me")
    left = folder.put(io.BytesIO(b"of an add that was killed"))
    await claim(store, "killed", [left.sha256])
    for dry_run in (True, False):
        assert not (await collect(store, folder, 0, "me", dry_run=dry_run)).files
    assert folder.size(left.sha256) == left.size
    async with store.begin() as connection:
        await connection.execute(claims.update().values(at=claims.c.at - CLAIM_S))
    assert [kept.sha256 for kept in (await collect(store, folder, 0, "me")).files] == [left.sha256]
    async with store.read() as connection:
        assert (await connection.execute(sa.select(claims))).all() == []
    assert {kept.sha256 for kept in folder.all()} == set(version.files.blobs)


async def test_an_add_whose_claims_ran_out_keeps_its_files_once_more(
    store: Store, folder: Artifacts, make_model: MakeModel
) -> None:
    await add(store, folder, make_model(1), About("other"), "me")
    model, kept = make_model(), []
    loop = asyncio.get_running_loop()

    async def a_day_goes_by() -> None:
        async with store.begin() as connection:
            await connection.execute(claims.update().values(at=claims.c.at - CLAIM_S))
        await collect(store, folder, 0, "gc")

    def before(what: str) -> None:
        kept.append(what)
        if len(kept) == 4:
            asyncio.run_coroutine_threadsafe(a_day_goes_by(), loop).result()

    version = await add(store, Watched(folder, before), model, About("a"), "me")
    assert kept.count("put") == 8
    _, found = await resolve(store, folder, Reference.of(version.reference))
    assert all_files(found) == all_files(model)


async def test_an_add_that_fails_leaves_no_claims(store: Store, folder: Artifacts, make_model: MakeModel) -> None:
    def full(_: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        await add(store, Watched(folder, full), make_model(), About("a"), "me")
    async with store.read() as connection:
        assert (await connection.execute(sa.select(claims))).all() == []


async def test_an_add_waits_for_what_is_being_deleted_and_keeps_it_anew(
    store: Store, folder: Artifacts, make_model: MakeModel
) -> None:
    model = make_model()
    version = await add(store, folder, model, About("a"), "me")
    async with store.begin() as connection:
        await connection.execute(table.delete())  # as if it had never been
    listed = list(folder.all())
    async with alone(store, COLLECTING):
        marked, _ = await doom(store, listed, set(), 0)
        assert len(marked) == 4
        adding = asyncio.create_task(add(store, folder, model, About("a"), "me"))
        await asyncio.sleep(0.5)
        assert not adding.done()
        for kept in marked:
            folder.delete(kept.sha256)
        await unmark(store)
        assert (await adding).digest == version.digest
    _, found = await resolve(store, folder, Reference("a", 1))
    assert all_files(found) == all_files(model)


async def test_of_two_collections_the_second_is_told_of_the_first(
    store: Store, folder: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.collecting.LONGEST_WAIT_S", 0.1)
    async with alone(store, COLLECTING):
        with pytest.raises(Conflict, match="runs already"):
            await collect(store, folder, 0, "me")
    await collect(store, folder, 0, "me")


def collect_and_hang(database: str, place: str, reached: str) -> None:
    """In a process of its own: between the mark and the deletion, for ever."""

    def hang(what: str) -> None:
        Path(reached).touch()
        time.sleep(1000)

    async def work() -> None:
        async with opened(database) as store:
            await collect(store, Watched(artifacts_at(place), hang), 0, "gc")

    asyncio.run(work())


def add_and_hang(database: str, place: str, folder: Path, reached: str) -> None:
    """In a process of its own: with one file kept and the second claimed."""
    asked = []

    def hang(what: str) -> None:
        asked.append(what)
        if len(asked) == 2:
            Path(reached).touch()
            time.sleep(1000)

    async def work() -> None:
        async with opened(database) as store:
            await add(store, Watched(artifacts_at(place), hang), folder, About("a"), "me")

    asyncio.run(work())


@contextmanager
def hanging(target: Callable[..., None], *words: object) -> Iterator[Any]:
    reached = Path(str(words[-1]))
    process = multiprocessing.get_context("spawn").Process(target=target, args=words)
    process.start()
    try:
        while not reached.exists():
            assert process.exitcode is None
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.join()


async def test_a_collection_that_was_killed_or_stopped_in_the_midst_loses_nothing_of_an_add(
    database: str, make_model: MakeModel, tmp_path: Path
) -> None:
    place, model = str(tmp_path / "kept"), make_model()
    artifacts = artifacts_at(place)
    async with opened(database) as store:
        await add(store, artifacts, make_model(1), About("other"), "me")
        weights = artifacts.put(io.BytesIO((model / "model.safetensors").read_bytes()))
        with hanging(collect_and_hang, database, place, str(tmp_path / "reached")) as process:
            adding = asyncio.create_task(add(store, artifacts, model, About("a"), "me"))
            os.kill(process.pid, signal.SIGSTOP)  # it may go on at any time, and delete: nobody may keep before that
            await asyncio.sleep(0.5)
            assert not adding.done()
            process.kill()
            await adding
        assert artifacts.size(weights.sha256) == weights.size
        async with store.read() as connection:
            assert (await connection.execute(sa.select(doomed))).all() == []
        left = artifacts.put(io.BytesIO(b"nobody's"))
        assert [kept.sha256 for kept in (await collect(store, artifacts, 0, "me")).files] == [left.sha256]
        _, found = await resolve(store, artifacts, Reference("a", 1))
        assert all_files(found) == all_files(model)


async def test_marks_of_a_killed_collection_are_taken_up_by_the_next(
    database: str, make_model: MakeModel, tmp_path: Path
) -> None:
    place = str(tmp_path / "kept")
    artifacts = artifacts_at(place)
    async with opened(database) as store:
        await add(store, artifacts, make_model(), About("a"), "me")
        left = artifacts.put(io.BytesIO(b"nobody's"))
        with hanging(collect_and_hang, database, place, str(tmp_path / "reached")) as process:
            process.kill()
            process.join()
        assert [kept.sha256 for kept in (await collect(store, artifacts, 0, "me")).files] == [left.sha256]


async def test_what_a_killed_add_has_kept_is_deleted_a_day_later(
    database: str, make_model: MakeModel, tmp_path: Path
) -> None:
    place = str(tmp_path / "kept")
    artifacts = artifacts_at(place)
    async with opened(database) as store:
        version = await add(store, artifacts, make_model(1), About("other"), "me")
        with hanging(add_and_hang, database, place, make_model(files={"a.json": [1]}), str(tmp_path / "reached")):
            assert not (await collect(store, artifacts, 0, "me")).files
        assert not (await collect(store, artifacts, 0, "me")).files
        assert len(list(artifacts.all())) == 5
        async with store.begin() as connection:
            await connection.execute(claims.update().values(at=claims.c.at - CLAIM_S))
        assert len((await collect(store, artifacts, 0, "me")).files) == 1
        assert {kept.sha256 for kept in artifacts.all()} == set(version.files.blobs)


def collect_until(database: str, place: str, enough: Any) -> None:
    """In a process of its own, without any grace, again and again."""

    async def work() -> None:
        async with opened(database) as store:
            while not enough.is_set():
                if await all_versions(store):
                    await collect(store, artifacts_at(place), 0, "gc")

    asyncio.run(work())


async def test_a_collection_without_grace_beside_processes_that_add_loses_nothing(
    database: str, make_model: MakeModel, tmp_path: Path
) -> None:
    place = str(tmp_path / "kept")
    async with opened(database):
        pass
    context = multiprocessing.get_context("spawn")
    enough = context.Event()
    adders = [context.Process(target=add_many, args=(database, place, make_model(seed), 5)) for seed in range(2)]
    collector = context.Process(target=collect_until, args=(database, place, enough))
    for process in (*adders, collector):
        process.start()
    try:
        for process in adders:
            await asyncio.to_thread(process.join, 120)
        enough.set()
        await asyncio.to_thread(collector.join, 30)
        assert [process.exitcode for process in (*adders, collector)] == [0] * 3
    finally:
        for process in (*adders, collector):
            process.kill()
    async with opened(database) as store:
        listed = await all_versions(store)
        assert len(listed) == 10
        for version in listed:
            await resolve(store, artifacts_at(place), Reference("a", version.number))
        assert (await audit.verify(store)).broken is None
