"""What gateways have counted of a canary's two arms: sums that can be added up, each process's in rows of its own.

A process writes what it has counted in all, over what it wrote before: a write that is repeated changes nothing, and
what a killed process had written stays counted.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import sqlalchemy as sa

from penstock.store import Store
from penstock.tables import canary_figures

Arm = Literal["stable", "canary"]
ARMS: tuple[Arm, Arm] = ("stable", "canary")
LEAST_S = 0.01
"""What is quicker counts as this: nobody waits for the difference, and a ratio would tell of nothing else."""


@dataclass(slots=True)
class Logs:
    """Natural logarithms of what was measured: how many, their sum, the sum of their squares."""

    count: int = 0
    sum: float = 0.0
    squares: float = 0.0

    def note(self, value: float) -> None:
        log = math.log(value)
        self.count += 1
        self.sum += log
        self.squares += log * log

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else 0.0

    @property
    def variance(self) -> float:
        """Of one measurement; 0 while there is only one."""
        if self.count < 2:
            return 0.0
        return max(0.0, (self.squares - self.sum * self.mean) / (self.count - 1))

    @property
    def typical(self) -> float | None:
        """The geometric mean, in the unit of what was measured: near the median, and not one large value's."""
        return math.exp(self.mean) if self.count else None


@dataclass(slots=True)
class Figures:
    """Of one arm. `requests` are those whose end tells of the version: answered, failed (`errors`) or refused by its
    engine (`refused`). `gone`: clients that left, or had set a deadline, before the end.

    `first` is of streams alone, in seconds to the first content; who left before it counts with the time waited.
    `whole` is in seconds, of answers; `length` is of one more than the tokens of an answer.
    """

    requests: int = 0
    errors: int = 0
    refused: int = 0
    gone: int = 0
    first: Logs = field(default_factory=Logs)
    whole: Logs = field(default_factory=Logs)
    length: Logs = field(default_factory=Logs)

    @property
    def typical_tokens(self) -> float | None:
        typical = self.length.typical
        return typical - 1 if typical is not None else None

    def described(self) -> dict[str, Any]:
        """For a program and a report, as JSON has it."""
        counts = {name: getattr(self, name) for name in COUNTS}
        return counts | {
            "first_token_s": self.first.typical,
            "seconds": self.whole.typical,
            "tokens": self.typical_tokens,
            "streams": self.first.count,
            "answers": self.whole.count,
        }


COUNTS = ("requests", "errors", "refused", "gone")
MEASURES = ("first", "whole", "length")
SUMS = {
    f"{measure}_{figure.name}": (measure, figure.name)
    for measure in MEASURES
    for figure in fields(Logs)
}  # fmt: skip


@dataclass(slots=True)
class Both:
    stable: Figures = field(default_factory=Figures)
    canary: Figures = field(default_factory=Figures)

    def of(self, arm: Arm) -> Figures:
        return self.canary if arm == "canary" else self.stable


async def write(store: Store, gateway: str, counted: Mapping[int, Both]) -> None:
    """What this process has counted in all, by canary."""
    now = time.time()
    rows = [
        {"canary": canary, "gateway": gateway, "arm": arm, "updated_at": now} | row_of(both.of(arm))
        for canary, both in sorted(counted.items())
        for arm in ARMS
    ]
    if not rows:
        return
    insert = store.insert(canary_figures)
    figures = {name: insert.excluded[name] for name in (*COUNTS, *SUMS, "updated_at")}
    upsert = insert.on_conflict_do_update(index_elements=["canary", "gateway", "arm"], set_=figures)
    async with store.begin() as connection:
        await connection.execute(upsert, rows)


async def read(store: Store, canary: int) -> Both:
    """All gateways' together."""
    columns = [sa.func.sum(canary_figures.c[name]).label(name) for name in (*COUNTS, *SUMS)]
    query = sa.select(canary_figures.c.arm, *columns).where(canary_figures.c.canary == canary)
    both = Both()
    async with store.read() as connection:
        for row in (await connection.execute(query.group_by(canary_figures.c.arm))).mappings():
            figures = both.of(row["arm"])
            for name in COUNTS:
                setattr(figures, name, int(row[name]))
            for name, (measure, figure) in SUMS.items():
                value = float(row[name])
                setattr(getattr(figures, measure), figure, int(value) if figure == "count" else value)
    return both


def row_of(figures: Figures) -> dict[str, float]:
    counts = {name: getattr(figures, name) for name in COUNTS}
    return counts | {name: getattr(getattr(figures, measure), what) for name, (measure, what) in SUMS.items()}
