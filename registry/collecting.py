"""Deletes the kept files that no version refers to, such as those of an `add` that was killed.

One collection runs at a time. The files are marked before they are deleted (`registry/claims.py`): an `add` beside it
waits for those few that it needs, and keeps them anew.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from penstock import audit
from penstock.alone import Turn, alone
from penstock.errors import BadRequest, Conflict
from penstock.store import Store
from registry.artifacts import Artifacts, Kept
from registry.claims import COLLECTING, POLL_S, claimed, doom, unmark
from registry.drafts import swept
from registry.local_copy import copies
from registry.versions import digests, manifests, referred

AT_ONCE = 50
LONGEST_WAIT_S = 10


@dataclass(slots=True)
class Collected:
    """What was deleted, or would be; `drafts` are what killed writers have left, `strangers` digests of versions that
    are not in this database: their files are spared."""

    files: list[Kept] = field(default_factory=list)
    kept: int = 0
    drafts: int = 0
    strangers: set[str] = field(default_factory=set)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


async def collect(store: Store, artifacts: Artifacts, grace_s: float, by: str, *, dry_run: bool = False) -> Collected:
    """Spares what is younger than the grace. Raises Conflict beside another; BadRequest for a database without
    versions, which is most likely not the one that the files belong to."""
    if dry_run:
        done, _, _ = await found(store, artifacts, time.time() - grace_s)
        return done
    until = time.monotonic() + LONGEST_WAIT_S
    while True:
        async with alone(store, COLLECTING) as turn:
            if turn:
                await unmark(store)
                return await collected(store, artifacts, time.time() - grace_s, by, turn)
        if time.monotonic() > until:
            raise Conflict("`penstock registry gc` runs already: wait until it has ended")
        await asyncio.sleep(POLL_S)


async def found(store: Store, artifacts: Artifacts, before: float) -> tuple[Collected, set[str], int]:
    """What would be deleted; what versions refer to, and the last change that wrote one."""
    there = await asyncio.to_thread(lambda: list(artifacts.all()))
    async with store.read() as connection:
        spared = await claimed(connection)
        wanted, seen = await referred(connection)
        known = await digests(connection)
    strangers = await asyncio.to_thread(artifacts.manifests) - known
    for digest in strangers:
        spared |= (await asyncio.to_thread(artifacts.manifest, digest)).blobs.keys()
    old = [file for file in there if file.sha256 not in wanted | spared and file.at <= before]
    if old and not wanted:
        raise BadRequest(
            f"{len(there)} files are kept, and no version of this database refers to any: is state.database the one "
            "that they were added to? If they are nobody's, delete what registry.artifacts names by hand"
        )
    return Collected(old, len(there) - len(old), strangers=strangers), wanted, seen


async def collected(store: Store, artifacts: Artifacts, before: float, by: str, turn: Turn) -> Collected:
    old, wanted, seen = await found(store, artifacts, before)
    done = Collected(kept=old.kept + len(old.files), strangers=old.strangers)
    for start in range(0, len(old.files), AT_ONCE):
        await turn.check()
        seen = await delete(store, artifacts, old.files[start : start + AT_ONCE], wanted, seen, done)
    done.kept -= len(done.files)
    await note_all(store, artifacts)
    done.drafts = await asyncio.to_thread(lambda: artifacts.tidy(before) + swept(copies(), before))
    if done.files:
        await audit.note(store, by, "artifacts.deleted", "registry", files=len(done.files), size=done.size)
    return done


async def note_all(store: Store, artifacts: Artifacts) -> None:
    """Those whose `add` was killed before it came to that."""
    async with store.read() as connection:
        left = await digests(connection) - await asyncio.to_thread(artifacts.manifests)
    for manifest in (await manifests(store, left)).values():
        await asyncio.to_thread(artifacts.refer, manifest)


async def delete(
    store: Store, artifacts: Artifacts, files: Sequence[Kept], wanted: set[str], seen: int, done: Collected
) -> int:
    """Those that nobody wants, nor the versions written since change `seen`, which are added to `wanted`."""
    chosen, seen = await doom(store, files, wanted, seen)

    def work() -> None:
        for file in chosen:
            artifacts.delete(file.sha256)
            done.files.append(file)

    if chosen:
        await to_its_end(work)
        await unmark(store)
    return seen


async def to_its_end(work: Callable[[], None]) -> None:
    """In a thread: who is cancelled gives the turn back when nothing is deleted any more."""
    deleting = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(deleting)
    finally:
        if not deleting.done():
            await asyncio.wait([deleting])
