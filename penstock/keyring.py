"""API keys as they are made, changed, replaced, withdrawn and listed, for the command line and the admin API alike.

A key is `sk-ps-<id>-<secret>`. Stored are its id and its HMAC under a pepper that is in no database: whoever reads the
table can neither use a key nor make one. The key itself is told once, to whoever asked for it.
"""

import difflib
import hmac
import os
import re
import secrets
import string
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock import audit
from penstock.audit import Seen
from penstock.callers import RESERVED_TENANTS, UNLIMITED, USUAL_SCOPES, Caller, Quota, Scope
from penstock.errors import BadRequest, Conflict, NotFound, StartError
from penstock.home import home
from penstock.store import Store
from penstock.tables import keys, marks

SUBJECT = "keys"
PREFIX = "sk-ps-"
BASE62 = string.ascii_letters + string.digits
ID_CHARACTERS = 8
SECRET_CHARACTERS = 43  # 256 bits
ID = slice(len(PREFIX), len(PREFIX) + ID_CHARACTERS)

NAME = r"^[A-Za-z0-9][A-Za-z0-9._@+\-]{0,127}$"
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LONGEST_S = 100 * 365 * 86400
PEPPER_BYTES = 32

# Made once: it is run all the time, and to make it costs more than to run it.
NOW = audit.standing(SUBJECT)
SINCE = (
    sa.select(NOW, keys).select_from(NOW.outerjoin(keys, keys.c.change > sa.bindparam("after"))).order_by(keys.c.change)
)

Count = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
BigCount = Annotated[int, Field(ge=1, le=2**53, strict=True)]
ModelName = Annotated[str, Field(pattern=r"^[^\x00-\x1f]{1,512}$")]
R = TypeVar("R", bound="Rights")


class Rights(BaseModel):
    """What a key may, and for how long: `expires` is a duration from now. Of a key that there is, what is named here
    is to be another; None takes it away."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scopes: frozenset[Scope] = Field(USUAL_SCOPES, min_length=1)
    models: frozenset[ModelName] | None = Field(None, min_length=1)
    rpm: Count | None = None
    tpm: Count | None = None
    concurrent: Count | None = None
    daily_tokens: BigCount | None = None
    monthly_tokens: BigCount | None = None
    priority: int = Field(0, ge=-1000, le=1000, strict=True)
    expires: str | None = None
    guards: str | None = Field(None, pattern=NAME)

    @field_validator("expires")
    @classmethod
    def expires_is_a_duration(cls, expires: str | None) -> str | None:
        if expires is not None and duration_s(expires) == 0:
            raise ValueError("a key that expires at once is of no use")
        return expires

    def columns(self, now: float) -> dict[str, Any]:
        """As the table has them."""
        lasts_s = None if self.expires is None else duration_s(self.expires)
        return self.model_dump(include=Rights.model_fields.keys() - {"expires"}) | {
            "scopes": sorted(self.scopes),
            "models": None if self.models is None else sorted(self.models),
            "expires_at": None if lasts_s is None else now + lasts_s,
            "lasts_s": lasts_s,
        }

    def named_columns(self, now: float) -> dict[str, Any]:
        """Those of what was named, also if it was named as it is by default."""
        named = self.model_fields_set | ({"expires_at", "lasts_s"} if "expires" in self.model_fields_set else set())
        return {column: value for column, value in self.columns(now).items() if column in named}


class Wanted(Rights):
    """A key to be made."""

    name: str = Field(pattern=NAME)
    tenant: str | None = Field(None, pattern=NAME)


def wanted(fields: Mapping[str, Any]) -> Wanted:
    """Raises BadRequest, naming the field."""
    return checked(Wanted, fields)


def rights(fields: Mapping[str, Any]) -> Rights:
    """Raises BadRequest, naming the field."""
    return checked(Rights, fields)


def checked(kind: type[R], fields: Mapping[str, Any]) -> R:
    try:
        return kind(**fields)
    except ValidationError as error:
        raise bad(error.errors(include_url=False)[0]) from None


def bad(detail: Mapping[str, Any]) -> BadRequest:
    """What pydantic found, without what was sent."""
    field = ".".join(str(part) for part in detail["loc"])
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden" and field in ("name", "tenant"):
        message = "a key has it for good; make another key"
    return BadRequest(f"{field}: {message}" if field else message, param=field or None)


def duration_s(text: str) -> int:
    """`45s`, `90m`, `12h`, `30d`, `2w` -> seconds. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    seconds = int(found[1]) * UNITS_S[found[2]] if found else LONGEST_S + 1
    if seconds > LONGEST_S:
        raise ValueError("write a duration as a number and s, m, h, d or w, such as 30d")
    return seconds


@dataclass(frozen=True, slots=True)
class Key:
    """A stored key: everything but itself. `change` is the number of the change that wrote it last."""

    id: str
    digest: bytes
    caller: Caller
    created_at: float
    revoked_at: float | None
    change: int

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Self:
        quota = Quota(row["rpm"], row["tpm"], row["concurrent"], row["daily_tokens"], row["monthly_tokens"])
        caller = Caller(
            row["holder"],
            row["name"],
            row["tenant"],
            frozenset(row["scopes"]),
            None if row["models"] is None else frozenset(row["models"]),
            UNLIMITED if quota.is_unlimited else quota,
            row["priority"],
            row["expires_at"],
            row["guards"],
        )
        return cls(row["id"], row["digest"], caller, row["created_at"], row["revoked_at"], row["change"])

    def is_live(self, now: float) -> bool:
        return self.revoked_at is None and (self.caller.expires_at is None or self.caller.expires_at > now)

    @property
    def state(self) -> Literal["live", "expired", "revoked"]:
        return "revoked" if self.revoked_at is not None else "live" if self.is_live(time.time()) else "expired"

    def described(self) -> dict[str, Any]:
        """For a person or a program, as JSON has it."""
        caller, quota = self.caller, self.caller.quota
        return {
            "name": caller.name,
            "id": self.id,
            "holder": caller.id,
            "tenant": caller.tenant,
            "state": self.state,
            "scopes": sorted(caller.scopes),
            "models": None if caller.models is None else sorted(caller.models),
            "rpm": quota.rpm,
            "tpm": quota.tpm,
            "concurrent": quota.concurrent,
            "daily_tokens": quota.daily_tokens,
            "monthly_tokens": quota.monthly_tokens,
            "priority": caller.priority,
            "guards": caller.guards,
            "created_at": self.created_at,
            "expires_at": caller.expires_at,
            "revoked_at": self.revoked_at,
        }


@dataclass(frozen=True, slots=True)
class Made:
    """`key` is what its holder sends; nothing else has it."""

    key: str
    stored: Key


@dataclass(frozen=True, slots=True)
class News:
    """`seen` is what has been read with this. `restored`: what was seen is no longer there, so that `keys` are not all
    that may differ."""

    keys: list[Key]
    seen: Seen
    restored: bool


class Keyring:
    """Every change of a key, its entry in the audit log and the word to all copies are one transaction."""

    def __init__(self, store: Store, pepper: bytes) -> None:
        self.store = store
        self.pepper = pepper

    async def check_pepper(self) -> None:
        """Raises StartError if the keys in the store were made under another one."""
        async with self.store.read() as connection:
            await self._same_pepper(connection)

    async def create(self, wanted: Wanted, actor: str) -> Made:
        """Raises Conflict while a key of that name is live, BadRequest for a tenant that is not for stored keys."""
        now = time.time()
        id = drawn(ID_CHARACTERS)
        tenant = wanted.tenant or wanted.name
        if tenant in RESERVED_TENANTS:
            raise BadRequest(
                f"the tenant {tenant} is that of callers whose keys are not stored: give this key another tenant",
                param="tenant",
            )
        row = wanted.columns(now) | {"name": wanted.name, "holder": id, "tenant": tenant, "created_at": now}
        async with self.store.begin() as connection:
            change = await self.store.changed(connection, SUBJECT)
            if any(key.is_live(now) for key in await named(connection, wanted.name)):
                raise Conflict(
                    f"there is a key named {wanted.name} already: rotate or revoke it, or take another name",
                    param="name",
                )
            made = await self._add(connection, row | {"id": id, "change": change})
            await self._record(connection, actor, "key.created", made.stored)
        return made

    async def rotate(self, name: str, overlap_s: float, actor: str) -> Made:
        """A new key with the rights of the one of this name, which goes on for `overlap_s`. Raises NotFound."""
        now = time.time()
        id = drawn(ID_CHARACTERS)
        async with self.store.begin() as connection:
            change = await self.store.changed(connection, SUBJECT)
            live = await self._live(connection, name, now)
            newest = live[-1]
            for key in live:
                end = min(now + overlap_s, key.caller.expires_at or now + overlap_s)
                await connection.execute(keys.update().where(keys.c.id == key.id).values(expires_at=end, change=change))
            old = (await connection.execute(sa.select(keys).where(keys.c.id == newest.id))).mappings().one()
            lasts = old["lasts_s"] or (newest.caller.expires_at and newest.caller.expires_at - newest.created_at)
            row = dict(old) | {"id": id, "change": change, "created_at": now, "expires_at": lasts and now + lasts}
            made = await self._add(connection, row)
            replaced = [key.id for key in live]
            await self._record(connection, actor, "key.rotated", made.stored, replaces=replaced, overlap_s=overlap_s)
        return made

    async def update(self, name: str, rights: Rights, actor: str) -> list[Key]:
        """Gives every live key of this name, those of a rotation too, what `rights` names, and leaves them the rest;
        an old one ends no later for that. Returns them, the oldest first.

        Raises NotFound, and BadRequest where nothing is named.
        """
        if not rights.model_fields_set:
            raise BadRequest(f"say what is to be another, at least one of {', '.join(Rights.model_fields)}")
        now = time.time()
        asked = rights.named_columns(now)
        changed = {}
        async with self.store.begin() as connection:
            change = await self.store.changed(connection, SUBJECT)
            live = await self._live(connection, name, now)
            for key in live:
                row = asked if key is live[-1] else asked | no_later(asked, key.caller.expires_at)
                was = key.described()
                if other := {of: {"from": was[of], "to": row[of]} for of in row.keys() & was if was[of] != row[of]}:
                    await connection.execute(keys.update().where(keys.c.id == key.id).values(row | {"change": change}))
                    changed[key.id] = other
            if changed:
                await audit.record(self.store, connection, actor, "key.updated", name, changed=changed)
            return await self._live(connection, name, now)

    async def revoke(self, name: str, actor: str) -> list[Key]:
        """Withdraws every key of this name, those of a rotation too. Raises NotFound if none is left to withdraw."""
        now = time.time()
        async with self.store.begin() as connection:
            change = await self.store.changed(connection, SUBJECT)
            left = [key for key in await named(connection, name) if key.revoked_at is None]
            if not left:
                raise await self._unknown(connection, name)
            ids = [key.id for key in left]
            await connection.execute(keys.update().where(keys.c.id.in_(ids)).values(revoked_at=now, change=change))
            await audit.record(self.store, connection, actor, "key.revoked", name, ids=ids)
        return left

    async def all(self) -> list[Key]:
        """The oldest first."""
        query = sa.select(keys).order_by(keys.c.created_at, keys.c.id)
        async with self.store.read() as connection:
            return [Key.of(row) for row in (await connection.execute(query)).mappings()]

    async def since(self, seen: Seen) -> News:
        """The keys that later changes have written, in their order; all, after NOTHING.

        One statement, hence one moment. Every change of a key has its entry in the audit log, so a database that has
        been put back lacks the last entry seen, or has another in its place, whatever has been changed since.
        """
        async with self.store.read() as connection:
            rows = (await connection.execute(SINCE, {"after": seen.change, "entry": seen.entry})).mappings().all()
        now = rows[0]
        found = [Key.of(row) for row in rows if row["id"] is not None]
        # not the counter: while a dump is being put back, it may be there before the keys are
        change = found[-1].change if found else seen.change
        return News(found, replace(Seen.of(now), change=change), restored=seen.is_lost(now))

    async def _add(self, connection: AsyncConnection, row: Mapping[str, Any]) -> Made:
        await connection.execute(
            self.store.insert(marks).values(name="pepper", value=self._fingerprint()).on_conflict_do_nothing()
        )
        await self._same_pepper(connection)
        key = f"{PREFIX}{row['id']}-{drawn(SECRET_CHARACTERS)}"
        whole = {**row, "digest": digest(self.pepper, key.encode()), "revoked_at": None}
        await connection.execute(keys.insert().values(whole))
        return Made(key, Key.of(whole))

    async def _same_pepper(self, connection: AsyncConnection) -> None:
        mark = (await connection.execute(sa.select(marks.c.value).where(marks.c.name == "pepper"))).scalar()
        if mark is not None and not hmac.compare_digest(mark, self._fingerprint()):
            raise StartError(
                "the keys in the database were made under another pepper: give every gateway and every "
                "`penstock keys` the same state.pepper, or the file `pepper` of the home where the first key was made"
            )

    def _fingerprint(self) -> str:
        return digest(self.pepper, b"penstock's pepper").hex()

    async def _record(
        self, connection: AsyncConnection, actor: str, action: audit.Action, key: Key, **more: Any
    ) -> None:
        said = key.described()
        name = said.pop("name")
        del said["state"]
        details = {field: value for field, value in said.items() if value is not None} | more
        await audit.record(self.store, connection, actor, action, name, **details)

    async def _live(self, connection: AsyncConnection, name: str, now: float) -> list[Key]:
        """The oldest first: one, or those of a rotation. Raises NotFound."""
        live = [key for key in await named(connection, name) if key.is_live(now)]
        if not live:
            raise await self._unknown(connection, name)
        return sorted(live, key=lambda key: key.created_at)  # not by `change`, which both of a rotation have

    async def _unknown(self, connection: AsyncConnection, name: str) -> NotFound:
        if gone := await named(connection, name):
            what = "was revoked" if all(key.revoked_at is not None for key in gone) else "has expired"
            return NotFound(f"the key named {name!r} {what}: make another", param="name")
        known = (await connection.execute(sa.select(keys.c.name).where(keys.c.revoked_at.is_(None)))).scalars()
        near = difflib.get_close_matches(name, set(known), n=1)
        return NotFound(f"no key is named {name!r}{f', did you mean {near[0]!r}?' if near else ''}", param="name")


async def named(connection: AsyncConnection, name: str) -> list[Key]:
    """A name that no key can have is not asked for: Postgres refuses some."""
    if not re.fullmatch(NAME, name):
        return []
    found = await connection.execute(sa.select(keys).where(keys.c.name == name))
    return [Key.of(row) for row in found.mappings()]


def no_later(asked: Mapping[str, Any], end: float | None) -> dict[str, float | None]:
    """The column `expires_at` where it is asked for, of a key that has an end."""
    if "expires_at" not in asked:
        return {}
    return {"expires_at": min((at for at in (asked["expires_at"], end) if at is not None), default=None)}


def drawn(characters: int) -> str:
    return "".join(secrets.choice(BASE62) for _ in range(characters))


def digest(pepper: bytes, key: bytes) -> bytes:
    return hmac.digest(pepper, key, "sha256")


def pepper(given: SecretStr | None) -> bytes:
    """The configured one, else that of the home, which is made when needed. Raises StartError."""
    if given is not None:
        return given.get_secret_value().encode()
    file = home() / "pepper"
    try:
        if not file.exists():
            make_pepper(file)
        kept = file.read_bytes().strip()
    except OSError as error:
        raise StartError(f"the pepper {file} cannot be used: {error.strerror}; set state.pepper instead") from error
    if len(kept) < PEPPER_BYTES:
        raise StartError(f"the pepper {file} is damaged: restore it, as no stored key is known without it")
    return kept


def make_pepper(file: Path) -> None:
    """Of several processes that do this at once one wins, and no one sees half of it."""
    descriptor, draft = tempfile.mkstemp(dir=file.parent, prefix=".pepper-")  # which is 0600
    try:
        with os.fdopen(descriptor, "w") as writing:
            writing.write(secrets.token_hex(PEPPER_BYTES))
            writing.flush()
            os.fsync(writing.fileno())
        try:
            os.link(draft, file)
        except FileExistsError:
            return
    finally:
        os.unlink(draft)
