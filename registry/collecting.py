"""Deletes the kept files that no version refers to, such as those of an `add` that was killed.

Before each few files are deleted, the row that every `add` takes is taken: an `add` whose files are gone notices when
it comes to write its version, and keeps them once more. The grace is there so that this hardly ever happens.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock import audit
from penstock.errors import BadRequest
from penstock.store import Store
from registry.artifacts import Artifacts, Kept, swept
from registry.local_copy import copies
from registry.versions import ARTIFACTS, referred

AT_ONCE = 50


@dataclass(slots=True)
class Collected:
    """What was deleted, or would be; `drafts` are what killed writers have left."""

    files: list[Kept] = field(default_factory=list)
    kept: int = 0
    drafts: int = 0

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


async def collect(store: Store, artifacts: Artifacts, grace_s: float, by: str, *, dry_run: bool = False) -> Collected:
    """Spares what is younger than the grace. Raises BadRequest for a database without versions, which is most likely
    not the one that the files belong to."""
    before = time.time() - grace_s
    there = await asyncio.to_thread(lambda: list(artifacts.all()))
    async with store.read() as connection:
        wanted, seen = await referred(connection)
    done = Collected()
    old = [file for file in there if file.sha256 not in wanted and file.at <= before]
    if old and not wanted:
        raise BadRequest(
            f"{len(there)} files are kept, and no version of this database refers to any: is state.database the one "
            "that they were added to? If they are nobody's, delete what registry.artifacts names by hand"
        )
    if dry_run:
        done.files = old
    else:
        for start in range(0, len(old), AT_ONCE):
            seen = await delete(store, artifacts, old[start : start + AT_ONCE], wanted, seen, done)
        done.drafts = await asyncio.to_thread(lambda: artifacts.tidy(before) + swept(copies(), before))
    done.kept = len(there) - len(done.files)
    if done.files and not dry_run:
        await audit.note(store, by, "artifacts.deleted", "registry", files=len(done.files), size=done.size)
    return done


async def delete(
    store: Store, artifacts: Artifacts, files: Sequence[Kept], wanted: set[str], seen: int, done: Collected
) -> int:
    """Those that nobody wants, nor the versions written since change `seen`, which are added to `wanted`."""
    async with store.begin() as connection:
        await store.changed(connection, ARTIFACTS)
        more, seen = await referred(connection, seen)
        wanted |= more
        for file in files:
            if file.sha256 not in wanted:
                await asyncio.to_thread(artifacts.delete, file.sha256)
                done.files.append(file)
    return seen
