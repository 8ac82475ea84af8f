"""What nobody refers to is deleted, and nothing else, whatever goes on beside it."""

import asyncio
import io
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from penstock import audit
from penstock.errors import BadRequest
from penstock.references import Reference
from penstock.store import Store, opened
from registry import versions
from registry.adding import About, add
from registry.artifacts import DRAFT, Artifacts, Kept, artifacts_at
from registry.collecting import Collected, collect, delete
from registry.manifest import File
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


class Collecting:
    """Artifacts that lose everything `times` times just after it was kept, as to a collection without grace."""

    def __init__(self, inner: Artifacts, times: int) -> None:
        self.inner = inner
        self.times = times

    def put(self, source: BinaryIO) -> File:
        return self.inner.put(source)

    def size(self, sha256: str) -> int | None:
        if self.times:
            self.times -= 1
            for kept in self.inner.all():
                self.inner.delete(kept.sha256)
        return self.inner.size(sha256)

    def fetch(self, file: File, target: Path, *, link: bool = True) -> None:
        self.inner.fetch(file, target, link=link)

    def all(self) -> Iterator[Kept]:
        return self.inner.all()

    def delete(self, sha256: str) -> None:
        self.inner.delete(sha256)

    def tidy(self, before: float) -> int:
        return self.inner.tidy(before)


async def test_an_add_whose_files_were_collected_keeps_them_once_more(
    store: Store, folder: Artifacts, make_model: MakeModel
) -> None:
    model = make_model()
    version = await add(store, Collecting(folder, 2), model, About("a"), "me")
    assert version.reference == "a@1"
    _, found = await resolve(store, folder, Reference("a", 1))
    assert all_files(found) == all_files(model)


def collect_until(database: str, place: str, versions: int) -> None:
    """In a process of its own, without any grace, until so many versions are there."""

    async def work() -> None:
        async with opened(database) as store:
            while versions > (there := len(await all_versions(store))):
                if there:
                    await collect(store, artifacts_at(place), 0, "gc")

    asyncio.run(work())


async def test_a_collection_without_grace_beside_processes_that_add_loses_nothing(
    database: str, make_model: MakeModel, tmp_path: Path
) -> None:
    place = str(tmp_path / "kept")
    async with opened(database):
        pass
    context = multiprocessing.get_context("spawn")
    work = [context.Process(target=add_many, args=(database, place, make_model(seed), 5)) for seed in range(2)]
    work.append(context.Process(target=collect_until, args=(database, place, 10)))
    for process in work:
        process.start()
    for process in work:
        await asyncio.to_thread(process.join, 120)
    assert [process.exitcode for process in work] == [0] * 3
    async with opened(database) as store:
        listed = await all_versions(store)
        assert len(listed) == 10
        for version in listed:
            await resolve(store, artifacts_at(place), Reference("a", version.number))
        assert (await audit.verify(store)).broken is None
