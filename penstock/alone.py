"""A thing that one process does at a time. A process that ends has given its turn back, however it ended: the kernel
keeps it for SQLite (a locked file beside the database), the server for Postgres (an advisory lock)."""

import fcntl
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.store import Store

KEPT_UP = (
    "SET LOCAL tcp_keepalives_idle = 10",
    "SET LOCAL tcp_keepalives_interval = 5",
    "SET LOCAL tcp_keepalives_count = 3",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
)
"""The server notices within half a minute when the machine of whoever has the turn is gone, and ends no turn itself."""


class Turn:
    def __init__(self, connection: AsyncConnection | None = None) -> None:
        self._connection = connection

    async def check(self) -> None:
        """Raises what the store raises if it may have been lost with the connection to the server."""
        if self._connection is not None:
            await self._connection.execute(sa.text("SELECT 1"))


@asynccontextmanager
async def alone(store: Store, thing: str) -> AsyncIterator[Turn | None]:
    """The turn at this thing until the block ends; None while another has it."""
    if not store.is_sqlite:
        async with store.begin() as connection:
            asked = sa.select(sa.func.pg_try_advisory_xact_lock(number_of(thing)))
            got = (await connection.execute(asked)).scalar()
            for setting in KEPT_UP if got else ():
                await connection.execute(sa.text(setting))
            yield Turn(connection) if got else None
        return
    descriptor = os.open(f"{store.engine.url.database}.{thing}", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield Turn()
    finally:
        os.close(descriptor)


def number_of(thing: str) -> int:
    """A signed number of 64 bits, as Postgres names its advisory locks."""
    return int.from_bytes(hashlib.sha256(f"penstock {thing}".encode()).digest()[:8], signed=True)
