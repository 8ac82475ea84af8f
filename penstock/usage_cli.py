"""`penstock usage`: what every key has used, as a table or as CSV."""

import asyncio
import csv
import json
import sys
from collections.abc import Sequence
from typing import Any, Literal

from penstock.store import opened
from penstock.used import COLUMNS, COUNTS, By, used


def show(
    database: str | None,
    by: Sequence[By],
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
    names = [*columns_of(by), *(count.name for count in COUNTS)]
    if style == "csv":
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif style == "json":
        print(json.dumps(rows))
    else:
        print_table(rows, by)


def columns_of(by: Sequence[By]) -> list[str]:
    """["key", "day"] -> ["key_id", "name", "day"]."""
    return [column.name for name in by for column in COLUMNS[name]]


def print_table(rows: Sequence[dict[str, Any]], by: Sequence[By]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in columns_of(by):
        table.add_column(name)
    for count in COUNTS:
        table.add_column(count.name.replace("_", " "), justify="right")
    for row in rows:
        cells = [str(row[name]) for name in columns_of(by)]
        table.add_row(*cells, *[f"{row[count.name]:,}" for count in COUNTS])
    Console().print(table if rows else "Nothing was used in this time.")
