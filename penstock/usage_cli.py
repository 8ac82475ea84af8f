"""`penstock usage`: what every key has used, as a table or as CSV."""

import asyncio
import csv
import json
import sys
from collections.abc import Sequence
from typing import Any, Literal

import sqlalchemy as sa

from penstock.store import Store, opened
from penstock.tables import usage

COLUMNS = {"key": usage.c.name, "model": usage.c.model, "day": usage.c.day, "tenant": usage.c.tenant}
FIGURES = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cut", "abandoned", "estimated")


async def used(
    store: Store, by: Sequence[str], since: str | None = None, until: str | None = None, key: str | None = None
) -> list[dict[str, Any]]:
    """Sums of what was used, a row for each combination of `by`; the days are included, 2026-11-22, UTC."""
    groups = [COLUMNS[name].label(name) for name in by]
    sums = [sa.cast(sa.func.sum(usage.c[name]), sa.BigInteger).label(name) for name in FIGURES]
    query = sa.select(*groups, *sums).group_by(*groups).order_by(*groups)
    if since:
        query = query.where(usage.c.day >= since)
    if until:
        query = query.where(usage.c.day <= until)
    if key:
        query = query.where(usage.c.name == key)
    async with store.read() as connection:
        return [dict(row) for row in (await connection.execute(query)).mappings()]


def show(
    database: str | None,
    by: Sequence[str],
    style: Literal["table", "csv", "json"],
    since: str | None,
    until: str | None,
    key: str | None,
) -> None:
    """Prints the sums. Raises StartError where the database cannot be used."""

    async def ask() -> list[dict[str, Any]]:
        async with opened(database) as store:
            return await used(store, by, since, until, key)

    rows = asyncio.run(ask())
    names = [*by, *FIGURES]
    if style == "csv":
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif style == "json":
        print(json.dumps(rows))
    else:
        print_table(rows, by)


def print_table(rows: Sequence[dict[str, Any]], by: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in by:
        table.add_column(name)
    for name in FIGURES:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*[str(row[name]) for name in by], *[f"{row[name]:,}" for name in FIGURES])
    Console().print(table if rows else "Nothing was used in this time.")
