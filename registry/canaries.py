"""Canaries: a version that gets a share of an alias's requests until it takes the alias over, or goes back.

One runs for an alias at a time. It starts and ends under the subject `aliases`, whose numbers order both with the moves
of aliases, so whoever follows those finds it by the same look. `aliases.move` ends it, too: in favour of its version
(`on`) or of another (`overtaken`).
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock import audit
from penstock.config import nearest
from penstock.errors import BadRequest, Conflict, NotFound
from penstock.references import Reference, check_alias
from penstock.store import Store
from penstock.tables import canaries
from registry.versions import Version, found

SUBJECT = "aliases"
MOST_PERCENT = 50.0
Outcome = Literal["on", "back", "stopped", "overtaken"]
"""It took the alias over; it was judged worse or could not be judged in time; a person ended it; the alias moved."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How it is judged (`evals/canary.py`). Margins are differences of shares, ratios are canary to stable."""

    least_requests: int = 200
    """Of the canary, before it can go on."""
    least_s: float = 60.0
    longest_s: float = 3600.0
    """After which it goes back."""
    errors_margin: float = 0.02
    refusals_margin: float = 0.1
    latency_ratio: float = 1.5
    length_ratio: float = 2.0
    """Answers may be so many times as long, or as short."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, (least, most) = getattr(self, field.name), BOUNDS[field.name]
            if type(value) not in (int, field.type) or not least <= value <= most:
                number = "a whole number" if field.type is int else "a number"
                raise BadRequest(f"{field.name} must be {number} from {least:g} to {most:g}, not {value!r}")
        if self.longest_s < self.least_s:
            raise BadRequest(f"longest_s ({self.longest_s:g}) must be at least least_s ({self.least_s:g})")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """{"least_requests": 50} -> the others as usual. Raises BadRequest, with the nearest name for one unknown."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise BadRequest(
                    f"there is no rule {name!r}{nearest(name, known) or '; there are ' + ', '.join(known)}"
                )
        return cls(**given)


BOUNDS: Mapping[str, tuple[float, float]] = {
    "least_requests": (20, 10**9),
    "least_s": (0, 30 * 86400),
    "longest_s": (1, 30 * 86400),
    "errors_margin": (0.0001, 1),
    "refusals_margin": (0.0001, 1),
    "latency_ratio": (1.01, 1000),
    "length_ratio": (1.01, 1000),
}


@dataclass(frozen=True, slots=True)
class Canary:
    """`report` is the gate's, `verdict` the judge's at the end; `id` is the change that started it."""

    id: int
    name: str
    alias: str
    from_version: int
    version: int
    percent: float
    rules: Rules
    report: Mapping[str, Any] | None
    started_at: float
    by: str
    change: int
    ended_at: float | None = None
    outcome: Outcome | None = None
    ended_by: str | None = None
    verdict: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Self:
        """What a later Penstock has written into its rules, and is not known here, is left out."""
        known = {field.name: row["rules"][field.name] for field in fields(Rules) if field.name in row["rules"]}
        return cls(**{**row, "rules": Rules(**known)})

    @property
    def runs(self) -> bool:
        return self.ended_at is None

    @property
    def subject(self) -> str:
        """demo@production."""
        return f"{self.name}@{self.alias}"

    @property
    def tried(self) -> str:
        """demo@8, as a registered version is named."""
        return f"{self.name}@{self.version}"

    @property
    def end(self) -> str:
        """For who has ended it by moving its alias."""
        how = "has taken it over" if self.outcome == "on" else "gets none of its requests any more"
        return f"the canary of {self.subject} has ended: version {self.version} {how}"

    def described(self) -> dict[str, Any]:
        """For a program, as JSON has it."""
        return asdict(self)


async def start(
    store: Store,
    alias: str,
    to: Reference,
    percent: float,
    by: str,
    rules: Rules | None = None,
    report: Mapping[str, Any] | None = None,
    expected: int | None = None,
) -> Canary:
    """`to` gets `percent` of the requests for `alias` from now on, if that points at `expected` (None: wherever).

    Raises NotFound where there is no such alias or version; Conflict where one runs for it, or it points elsewhere or
    to this version already; BadRequest for a share or a kind that cannot be; ValueError for a bad alias.
    """
    check_alias(alias)
    if not 0 < percent <= MOST_PERCENT:  # not a number is neither
        raise BadRequest(f"a canary gets more than 0 and at most {MOST_PERCENT:g} percent, not {percent:g}")
    async with store.begin() as connection:
        change = await store.changed(connection, SUBJECT)
        version = await found(connection, to)
        stable = await found(connection, Reference(to.name, alias))
        if now := await running(connection, to.name, alias):
            raise Conflict(
                f"{now.subject} has a canary, version {now.version}: "
                "`penstock canary stop` or `promote` ends it, then start another"
            )
        if expected not in (None, stable.number):
            raise Conflict(
                f"{to.name}@{alias} points to version {stable.number}, and not, as expected, to version {expected}: "
                "somebody has moved it; look at it again"
            )
        if stable.number == version.number:
            raise Conflict(f"{to.name}@{alias} points to version {version.number} already: there is nothing to try")
        check_kinds(stable, version)
        canary = Canary(
            id=change,
            name=to.name,
            alias=alias,
            from_version=stable.number,
            version=version.number,
            percent=float(percent),
            rules=rules or Rules(),
            report=report,
            started_at=time.time(),
            by=by[:128],
            change=change,
        )
        await connection.execute(canaries.insert().values(asdict(canary)))
        said: dict[str, Any] = {"from": stable.number, "to": version.number, "percent": canary.percent}
        said |= {"rules": asdict(canary.rules)} | ({"report": report} if report else {})
        await audit.record(store, connection, canary.by, "canary.started", canary.subject, **said)
    return canary


def check_kinds(stable: Version, version: Version) -> None:
    """Raises BadRequest: both arms are asked in one way, as adapters of one base or as whole models."""
    if "reward" in (stable.kind, version.kind) or (stable.kind == "adapter") != (version.kind == "adapter"):
        raise BadRequest(
            f"{version.reference} is of the kind {version.kind}, {stable.reference} of {stable.kind}: "
            "one cannot answer in the other's place; take a version of the same kind"
        )


async def end(
    store: Store, canary: int, outcome: Literal["back", "stopped"], by: str, verdict: Mapping[str, Any] | None = None
) -> Canary | None:
    """The alias stays where it is. None if it had ended already, which changes nothing: of several who judge it, one
    is told that it has. Raises NotFound."""
    async with store.begin() as connection:
        change = await store.changed(connection, SUBJECT)
        row = (await connection.execute(sa.select(canaries).where(canaries.c.id == canary))).mappings().first()
        if row is None:
            raise NotFound(f"there is no canary {canary}; `penstock canary list --all` shows those there were")
        if row["ended_at"] is not None:
            await connection.rollback()
            return None
        return await ended(store, connection, Canary.of(row), outcome, by, change, verdict)


async def check_runs(connection: AsyncConnection, canary: int, subject: str) -> None:
    """Raises Conflict."""
    query = sa.select(canaries.c.outcome, canaries.c.ended_by).where(canaries.c.id == canary)
    row = (await connection.execute(query)).first()
    if row is None or row.outcome is not None:
        how = f": {row.outcome}, by {row.ended_by}" if row else ""
        raise Conflict(f"the canary of {subject} has ended{how}; look at it again")


async def moved_away(
    store: Store,
    connection: AsyncConnection,
    name: str,
    alias: str,
    to: int,
    by: str,
    change: int,
    report: Mapping[str, Any] | None,
) -> None:
    """Its alias moves, in this transaction: if there is a canary of it, that is over."""
    canary = await running(connection, name, alias)
    if canary and to == canary.version:
        await ended(store, connection, canary, "on", by, change, report)
    elif canary:
        await ended(store, connection, canary, "overtaken", by, change, None)


async def ended(
    store: Store,
    connection: AsyncConnection,
    canary: Canary,
    outcome: Outcome,
    by: str,
    change: int,
    verdict: Mapping[str, Any] | None,
) -> Canary:
    values = {"ended_at": time.time(), "outcome": outcome, "ended_by": by[:128], "verdict": verdict, "change": change}
    await connection.execute(sa.update(canaries).where(canaries.c.id == canary.id).values(values))
    said: dict[str, Any] = {"from": canary.from_version, "to": canary.version, "outcome": outcome}
    if verdict and outcome != "on":  # of `on` it stands beside the move
        said["report"] = verdict
    await audit.record(store, connection, by[:128], "canary.ended", canary.subject, **said)
    return Canary.of({**asdict(canary), **values})


async def running(connection: AsyncConnection, name: str, alias: str) -> Canary | None:
    """Who holds the subject's row in this transaction knows that it is the only one."""
    query = sa.select(canaries).where(canaries.c.name == name, canaries.c.alias == alias, canaries.c.ended_at.is_(None))
    row = (await connection.execute(query)).mappings().first()
    return Canary.of(row) if row else None


async def all_canaries(store: Store, name: str | None = None, *, ended: bool = False) -> Sequence[Canary]:
    """Those that run, the oldest first; with `ended` those that did, too."""
    query = sa.select(canaries).order_by(canaries.c.id)
    if name is not None:
        query = query.where(canaries.c.name == name)
    if not ended:
        query = query.where(canaries.c.ended_at.is_(None))
    async with store.read() as connection:
        return [Canary.of(row) for row in (await connection.execute(query)).mappings()]


async def since(store: Store, change: int) -> Sequence[Canary]:
    """Those that later changes have started or ended, in their order."""
    query = sa.select(canaries).where(canaries.c.change > change).order_by(canaries.c.change)
    async with store.read() as connection:
        return [Canary.of(row) for row in (await connection.execute(query)).mappings()]


async def those(store: Store, ids: Collection[int]) -> Mapping[int, Canary]:
    """By id, running or not; what is not there is not in it."""
    async with store.read() as connection:
        rows = (await connection.execute(sa.select(canaries).where(canaries.c.id.in_(ids)))).mappings()
        return {row["id"]: Canary.of(row) for row in rows}


async def last(store: Store, name: str, alias: str) -> Canary:
    """The one that runs, else the last that did. Raises NotFound."""
    query = sa.select(canaries).where(canaries.c.name == name, canaries.c.alias == alias).order_by(canaries.c.id.desc())
    async with store.read() as connection:
        row = (await connection.execute(query.limit(1))).mappings().first()
    if row is None:
        raise NotFound(f"{name}@{alias} has had no canary; `penstock canary list --all` shows those there were")
    return Canary.of(row)


async def ended_with(store: Store, change: int) -> Canary | None:
    """The canary that a move of its alias (`Move.change`) has ended, if one was."""
    query = sa.select(canaries).where(canaries.c.change == change, canaries.c.ended_at.is_not(None))
    async with store.read() as connection:
        row = (await connection.execute(query)).mappings().first()
    return Canary.of(row) if row else None
