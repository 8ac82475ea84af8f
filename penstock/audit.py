"""The audit log: who changed what, in rows of which each bears the hash of the one before.

`record` appends in the transaction of what it records: neither is there without the other. No entry holds a key, a
prompt or a secret. `verify` finds an entry that was changed, taken out, put in or moved, and a cut end by the count
that is kept beside the log. Whoever may write to the database can also write that count, or a whole new chain: only a
digest noted elsewhere shows that.
"""

import hashlib
import json
import os
import platform
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.store import Store
from penstock.tables import audit, changes

Action = Literal[
    "key.created",
    "key.updated",
    "key.rotated",
    "key.revoked",
    "gateway.started",
    "gateway.stopped",
    "config.reloaded",
    "version.added",
    "alias.moved",
    "canary.started",
    "canary.ended",
    "version.served",
    "version.refused",
    "artifacts.deleted",
]

SUBJECT = "audit"
BEGINNING = "0" * 64
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """A row. `details` is JSON; `at` is ISO 8601, UTC."""

    number: int
    at: str
    actor: str
    action: str
    subject: str
    details: str
    previous: str
    digest: str

    @property
    def own_digest(self) -> str:
        """What `digest` must be."""
        said = asdict(self)
        del said["previous"], said["digest"]
        return hashlib.sha256(f"{self.previous}\n{canonical(said)}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`broken` is the number of the first entry that is not as it was written, `why` says in what."""

    entries: int
    head: str
    broken: int | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """How far a copy of a subject has read: the subject's last change, and the log's last entry with its digest, which
    no other history of the database has."""

    change: int = 0
    entry: int = 0
    digest: str | None = None

    @classmethod
    def of(cls, now: Mapping[Any, Any]) -> Self:
        return cls(now["last_change"] or 0, now["last_entry"] or 0, now["last_digest"])

    def is_lost(self, now: Mapping[Any, Any]) -> bool:
        """Whether the database was put back to before it, whatever has been changed since."""
        return (now["last_change"] or 0) < self.change or now["entry_now"] != self.digest


NOTHING = Seen()


def standing(subject: str) -> sa.Subquery:
    """One row, of the one moment of its statement: where a subject and the log stand, and the digest that the entry
    `entry` has now. Of a subject each change of which has its entry."""
    last_entry = sa.select(sa.func.max(audit.c.number)).scalar_subquery()
    return sa.select(
        sa.select(changes.c.number).where(changes.c.subject == subject).scalar_subquery().label("last_change"),
        last_entry.label("last_entry"),
        sa.select(audit.c.digest).where(audit.c.number == last_entry).scalar_subquery().label("last_digest"),
        sa.select(audit.c.digest).where(audit.c.number == sa.bindparam("entry")).scalar_subquery().label("entry_now"),
    ).subquery("now")


def canonical(value: Any) -> str:
    """One text for one value, on every machine."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def this_process() -> str:
    """The actor of what a gateway does by itself: node-7:4242."""
    return f"{platform.node()[:96] or 'here'}:{os.getpid()}"


async def record(
    store: Store, connection: AsyncConnection, actor: str, action: Action, subject: str, **details: Any
) -> None:
    """Appends an entry in this transaction. Two at a time wait for each other."""
    number = await store.changed(connection, SUBJECT)
    before = sa.select(audit.c.digest).where(audit.c.number == number - 1)
    entry = Entry(
        number,
        datetime.now(UTC).isoformat(timespec="milliseconds"),
        actor[:128],
        action,
        subject[:256],
        canonical(details),
        (await connection.execute(before)).scalar() or BEGINNING,
        "",
    )
    await connection.execute(audit.insert().values(asdict(entry) | {"digest": entry.own_digest}))


async def note(store: Store, actor: str, action: Action, subject: str, **details: Any) -> None:
    """Appends an entry about something that is in no database, such as a reload."""
    async with store.begin() as connection:
        await record(store, connection, actor, action, subject, **details)


async def entries(store: Store, after: int = 0, limit: int = PAGE) -> list[Entry]:
    """Those that follow the entry `after`, the oldest first."""
    query = sa.select(audit).where(audit.c.number > after).order_by(audit.c.number).limit(limit)
    async with store.read() as connection:
        return [Entry(**row) for row in (await connection.execute(query)).mappings()]


async def last(store: Store, count: int) -> list[Entry]:
    """The newest, the oldest of them first."""
    query = sa.select(audit).order_by(audit.c.number.desc()).limit(count)
    async with store.read() as connection:
        return [Entry(**row) for row in (await connection.execute(query)).mappings()][::-1]


async def verify(store: Store, noted: tuple[int, str] | None = None) -> Verdict:
    """Reads the whole log. `noted` is the number and the digest of an entry, kept elsewhere."""
    count = await store.number(SUBJECT)  # before the entries: what is appended meanwhile is no flaw
    number, head = 0, BEGINNING
    async for entry in every(store):
        if why := flaw(entry, number + 1, head, noted):
            return Verdict(number, head, number + 1 if entry.number > number + 1 else entry.number, why)
        number, head = entry.number, entry.digest
    if number < max(count, noted[0] if noted else 0):
        return Verdict(number, head, number + 1, "it is missing, and so are those after it: the end has been cut off")
    return Verdict(number, head)


async def every(store: Store) -> AsyncIterator[Entry]:
    page = await entries(store, 0, PAGE)
    while page:
        for entry in page:
            yield entry
        page = await entries(store, page[-1].number, PAGE)


def flaw(entry: Entry, number: int, previous: str, noted: tuple[int, str] | None) -> str:
    """What is wrong with an entry that should be the next; empty if nothing is."""
    if entry.number != number:
        return "it is missing" if entry.number > number else f"an entry bears the number {entry.number}"
    if entry.previous != previous:
        return "it does not follow from the entry before"
    if entry.digest != entry.own_digest:
        return "it has been changed"
    if noted and noted[0] == number and noted[1] != entry.digest:
        return "its digest is not the one that was noted: the log has been written anew"
    return ""
