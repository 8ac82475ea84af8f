"""Aliases: names that move from version to version, each move by compare-and-swap and kept for good.

Every move takes the next number of the subject `aliases`, by which whoever follows them finds what has changed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock import audit
from penstock.audit import Seen
from penstock.errors import Conflict
from penstock.references import Reference, check_alias
from penstock.store import Store
from penstock.tables import alias_moves, aliases
from registry import canaries
from registry.versions import found

SUBJECT = "aliases"
NOW = audit.standing(SUBJECT)
SINCE = (
    sa.select(NOW, aliases)
    .select_from(NOW.outerjoin(aliases, aliases.c.change > sa.bindparam("after")))
    .order_by(aliases.c.change)
)


@dataclass(frozen=True, slots=True)
class Alias:
    name: str
    alias: str
    version: int
    change: int

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Self:
        return cls(**row)


@dataclass(frozen=True, slots=True)
class Move:
    """`from_version` is None for a new alias; `report` is the gate's, where there was one."""

    change: int
    name: str
    alias: str
    from_version: int | None
    to_version: int
    at: float
    by: str
    report: Mapping[str, Any] | None

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Self:
        return cls(**row)


@dataclass(frozen=True, slots=True)
class News:
    """`seen` is what has been read with this; `number` also counts what became of canaries. `restored`: what was seen
    is no longer there, so that `aliases` are not all that may differ."""

    aliases: Sequence[Alias]
    seen: Seen
    number: int
    restored: bool


async def move(
    store: Store,
    alias: str,
    to: Reference,
    expected: int | None,
    by: str,
    report: Mapping[str, Any] | None = None,
    *,
    canary: int | None = None,
) -> Move | None:
    """Points `alias` at a version if it points at `expected` now (None: if it is not there); None where it did already.

    A canary of the alias ends; if `canary` is given, it is the one that must run. Raises Conflict where the alias
    points elsewhere or another canary runs, and then nothing has changed; NotFound; ValueError for a bad alias.
    """
    check_alias(alias)
    async with store.begin() as connection:
        change = await store.changed(connection, SUBJECT)
        version = await found(connection, to)
        here = (aliases.c.name == version.name) & (aliases.c.alias == alias)
        now = (await connection.execute(sa.select(aliases.c.version).where(here))).scalar()
        if now != expected:
            wanted = "absent" if expected is None else f"to version {expected}"
            raise Conflict(
                f"{version.name}@{alias} {points(now)}, and not, as expected, {wanted}: "
                "somebody has moved it; look at it again, then move it from there"
            )
        if now == version.number:
            await connection.rollback()
            return None
        if canary is not None:
            await canaries.check_runs(connection, canary, f"{version.name}@{alias}")
        row = {"name": version.name, "alias": alias, "version": version.number, "change": change}
        if now is None:
            await connection.execute(aliases.insert().values(row))
        else:
            await connection.execute(aliases.update().where(here).values(row))
        moved = Move(change, version.name, alias, now, version.number, time.time(), by[:128], report)
        await record(store, connection, moved)
        await canaries.moved_away(store, connection, version.name, alias, version.number, by, change, report)
    return moved


def points(version: int | None) -> str:
    return "is not there" if version is None else f"points to version {version}"


async def record(store: Store, connection: AsyncConnection, moved: Move) -> None:
    row = {name: getattr(moved, name) for name in moved.__slots__}
    await connection.execute(alias_moves.insert().values(row))
    subject = f"{moved.name}@{moved.alias}"
    said = {"from": moved.from_version, "to": moved.to_version} | ({"report": moved.report} if moved.report else {})
    await audit.record(store, connection, moved.by, "alias.moved", subject, **said)


async def all_aliases(store: Store, name: str | None = None) -> Sequence[Alias]:
    query = sa.select(aliases).order_by(aliases.c.name, aliases.c.alias)
    if name is not None:
        query = query.where(aliases.c.name == name)
    async with store.read() as connection:
        return [Alias.of(row) for row in (await connection.execute(query)).mappings()]


async def news(store: Store, seen: Seen) -> News:
    """The aliases that later moves have written, in their order; all, after NOTHING. One statement, so one moment."""
    async with store.read() as connection:
        rows = (await connection.execute(SINCE, {"after": seen.change, "entry": seen.entry})).mappings().all()
    now, read = (
        Seen.of(rows[0]),
        [Alias.of({name: row[name] for name in Alias.__slots__}) for row in rows if row["alias"]],
    )
    # not the counter: while a dump is being put back, it may be there before the aliases are
    change = read[-1].change if read else seen.change
    return News(read, replace(now, change=change), now.change, seen.is_lost(rows[0]))


async def history(store: Store, name: str) -> Sequence[Move]:
    """Every move of a model's aliases, the oldest first."""
    query = sa.select(alias_moves).where(alias_moves.c.name == name).order_by(alias_moves.c.change)
    async with store.read() as connection:
        return [Move.of(row) for row in (await connection.execute(query)).mappings()]
