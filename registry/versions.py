"""The versions in the store: written once, counted from 1 under each name, found by reference."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock import audit
from penstock.config import nearest
from penstock.errors import BadRequest, NotFound
from penstock.references import NAME, Reference
from penstock.store import Store
from penstock.tables import aliases, versions
from registry.kinds import Kind
from registry.manifest import Manifest

SUBJECT = "versions"
ARTIFACTS = "artifacts"
"""Whoever refers to kept files, and whoever deletes them, takes this subject's row first: they wait for each other."""

MOST_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Version:
    """`template` and `tokenizer` are digests, `data` those of what it was trained on, by name; `card` is a README.md;
    `parent` is NAME@NUMBER, `origin` the Hugging Face id and revision that it was imported from."""

    name: str
    number: int
    kind: Kind
    parent: str | None
    origin: str | None
    digest: str
    files: Manifest
    template: str | None
    tokenizer: str | None
    recipe: str | None
    data: Mapping[str, str]
    metrics: Mapping[str, float]
    card: str | None
    created_at: float
    by: str
    change: int = 0

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Self:
        return cls(**{**row, "files": Manifest.read(row["files"])})

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.number}"

    def described(self) -> dict[str, Any]:
        """For a program, as JSON has it."""
        said = {name: getattr(self, name) for name in self.__slots__ if name != "change"}
        return said | {"files": self.files.plain, "size": self.files.size}


async def insert(store: Store, connection: AsyncConnection, version: Version) -> Version:
    """Under the next number of its name, in this transaction, which must hold `ARTIFACTS`."""
    change = await store.changed(connection, SUBJECT)
    last = sa.select(sa.func.max(versions.c.number)).where(versions.c.name == version.name)
    number = ((await connection.execute(last)).scalar() or 0) + 1
    row = {name: getattr(version, name) for name in version.__slots__}
    row |= {"number": number, "change": change, "files": version.files.plain}
    await connection.execute(versions.insert().values(row))
    told = {"kind": version.kind, "digest": version.digest, "parent": version.parent, "origin": version.origin}
    details = {name: value for name, value in told.items() if value is not None}
    await audit.record(store, connection, version.by, "version.added", f"{version.name}@{number}", **details)
    return Version.of(row)


async def find(store: Store, reference: Reference) -> Version:
    """Raises NotFound that names what is nearest."""
    async with store.read() as connection:
        return await found(connection, reference)


async def found(connection: AsyncConnection, reference: Reference) -> Version:
    number = reference.which
    if isinstance(number, str):
        pointed = sa.select(aliases.c.version).where(aliases.c.name == reference.name, aliases.c.alias == number)
        number = (await connection.execute(pointed)).scalar() or 0
    query = sa.select(versions).where(versions.c.name == reference.name, versions.c.number == number)
    row = (await connection.execute(query)).mappings().first()
    if row is None:
        raise await unknown(connection, reference)
    return Version.of(row)


async def unknown(connection: AsyncConnection, reference: Reference) -> NotFound:
    names = list((await connection.execute(sa.select(versions.c.name).distinct())).scalars())
    if reference.name not in names:
        remedy = nearest(reference.name, names) or "; `penstock registry list` shows what there is"
        return NotFound(f"no model is named {reference.name!r} in the registry{remedy}")
    if isinstance(reference.which, int):
        last = sa.select(sa.func.max(versions.c.number)).where(versions.c.name == reference.name)
        number = (await connection.execute(last)).scalar()
        return NotFound(f"{reference.name} has no version {reference.which}: its last is {number}")
    query = sa.select(aliases.c.alias).where(aliases.c.name == reference.name).order_by(aliases.c.alias)
    there = list((await connection.execute(query)).scalars())
    near = nearest(reference.which, there)
    known = near or (f"; it has {', '.join(there)}" if there else "; `penstock registry tag` makes one")
    return NotFound(f"{reference.name} has no alias {reference.which!r}{known}")


async def all_versions(store: Store, name: str | None = None) -> Sequence[Version]:
    """By name and number. Raises NotFound for a name that has none."""
    query = sa.select(versions).order_by(versions.c.name, versions.c.number)
    if name is not None:
        if not NAME.fullmatch(name):
            raise BadRequest(f"{name[:120]!r} cannot be the name of a model")
        query = query.where(versions.c.name == name)
    async with store.read() as connection:
        listed = [Version.of(row) for row in (await connection.execute(query)).mappings()]
        if name is not None and not listed:
            raise await unknown(connection, Reference(name, 1))
    return listed


async def referred(connection: AsyncConnection, after: int = 0) -> tuple[set[str], int]:
    """The digests of all files of the versions that later changes have written, and the last of these changes."""
    query = sa.select(versions.c.files, versions.c.change).where(versions.c.change > after)
    digests: set[str] = set()
    for files, change in await connection.execute(query):
        digests.update(file["sha256"] for file in files.values())
        after = max(after, change)
    return digests, after


async def digests(connection: AsyncConnection) -> set[str]:
    return set((await connection.execute(sa.select(versions.c.digest))).scalars())


async def manifests(store: Store, wanted: Collection[str]) -> dict[str, Manifest]:
    """By their digests; a thousand of them at most."""
    query = sa.select(versions.c.digest, versions.c.files).where(versions.c.digest.in_(list(wanted)[:MOST_AT_ONCE]))
    async with store.read() as connection:
        return {digest: Manifest.read(files) for digest, files in await connection.execute(query)}
