"""What an `add` is about to refer to and what a collection is about to delete, by SHA-256, in the database.

Both are written in short transactions that take the same row, so that each sees the other's; files are kept and deleted
outside of them. Nobody dooms what is claimed, and who claims what is doomed waits until it is gone, then keeps it anew.
A killed `add` leaves claims, which count for a day; a killed collection leaves marks, which are void as soon as nobody
has its turn.
"""

import asyncio
import time
from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.alone import alone
from penstock.errors import StateUnavailable
from penstock.store import Store
from penstock.tables import claims, doomed
from registry.artifacts import Kept
from registry.versions import ARTIFACTS, referred

COLLECTING = "collecting"
CLAIM_S = 24 * 3600
LONGEST_WAIT_S = 600
POLL_S = 0.05


async def claim(store: Store, by: str, digests: Collection[str]) -> None:
    """From here on no collection deletes them. Raises StateUnavailable where one that lives does not come to an end."""
    now, until = time.time(), time.monotonic() + LONGEST_WAIT_S
    async with store.begin() as connection:
        await store.changed(connection, ARTIFACTS)
        await connection.execute(claims.delete().where(claims.c.by == by))
        await connection.execute(claims.insert(), [{"sha256": digest, "by": by, "at": now} for digest in digests])
        going = await marked(connection) & set(digests)
    while going:
        await take_over(store)
        if time.monotonic() > until:
            raise StateUnavailable(
                f"`penstock registry gc` has been deleting {len(going)} of these files for {LONGEST_WAIT_S // 60} "
                "minutes: end it where it runs, then add the directory again"
            )
        await asyncio.sleep(POLL_S)
        async with store.read() as connection:
            going &= await marked(connection)


async def take_over(store: Store) -> None:
    """Marks are void where nobody collects: whoever has made them was killed."""
    async with alone(store, COLLECTING) as turn:
        if turn:
            await unmark(store)


async def hold(connection: AsyncConnection, by: str, digests: Collection[str]) -> bool:
    """Whether they are all claimed still: a day is not enough for every network."""
    query = sa.select(sa.func.count()).select_from(claims).where(claims.c.by == by)
    return (await connection.execute(query)).scalar_one() == len(digests)


async def drop(connection: AsyncConnection, by: str) -> None:
    await connection.execute(claims.delete().where(claims.c.by == by))


async def doom(store: Store, files: Sequence[Kept], wanted: set[str], seen: int) -> tuple[Sequence[Kept], int]:
    """Marks those that nobody wants or claims, nor the versions written since change `seen`, whose files are added to
    `wanted`; which these are, and the last change."""
    async with store.begin() as connection:
        await store.changed(connection, ARTIFACTS)
        more, seen = await referred(connection, seen)
        wanted |= more
        await connection.execute(claims.delete().where(claims.c.at < time.time() - CLAIM_S))
        spared = wanted | set((await connection.execute(sa.select(claims.c.sha256))).scalars())
        chosen = [file for file in files if file.sha256 not in spared]
        if chosen:
            await connection.execute(doomed.insert(), [{"sha256": file.sha256} for file in chosen])
    return chosen, seen


async def unmark(store: Store) -> None:
    """Only for whoever has the turn at collecting."""
    async with store.begin() as connection:
        await connection.execute(doomed.delete())


async def marked(connection: AsyncConnection) -> set[str]:
    return set((await connection.execute(sa.select(doomed.c.sha256))).scalars())


async def claimed(connection: AsyncConnection) -> set[str]:
    query = sa.select(claims.c.sha256).where(claims.c.at >= time.time() - CLAIM_S)
    return set((await connection.execute(query)).scalars())
