"""What outlasts a process: SQLite on a laptop, Postgres for many gateways. The same statements for both."""

import asyncio
import logging
import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import asyncpg
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from penstock.errors import StartError
from penstock.state_urls import Database, database_of
from penstock.tables import changes

BUSY_S = 5
COMMAND_S = 15
UNAVAILABLE = (OSError, sqlite3.Error, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What a store raises that cannot be reached or does not answer; asyncpg's own while a connection is made."""
MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATING = 5067_1122  # any number of ours: who holds the lock of this name migrates


@asynccontextmanager
async def opened(database: SecretStr | str | None) -> AsyncIterator["Store"]:
    """The store, its tables brought up to date. Raises StartError."""
    wanted = database_of(database.get_secret_value() if isinstance(database, SecretStr) else database)
    wanted.check_files()
    store: Store | None = None
    try:
        try:
            store = Store(engine_of(wanted))
            await store.migrate()
        except UNAVAILABLE as error:
            name = wanted.url.render_as_string(hide_password=True)
            raise StartError(f"the database {name} cannot be used: {reason(error)}") from error
        yield store
    finally:
        if store:
            with suppress(TimeoutError):  # a server that hangs is not waited for
                async with asyncio.timeout(BUSY_S):
                    await store.engine.dispose()


def engine_of(database: Database) -> AsyncEngine:
    """Raises OSError or sqlite3.Error where a file cannot be made."""
    url = database.for_engine
    if url.get_backend_name() == "sqlite":
        make_file(Path(url.database or ""))
        return create_async_engine(url, connect_args={"timeout": BUSY_S})
    arguments = {"timeout": BUSY_S, "command_timeout": COMMAND_S} | database.arguments
    return create_async_engine(url, pool_pre_ping=True, pool_size=5, pool_timeout=BUSY_S, connect_args=arguments)


def make_file(file: Path) -> None:
    """Where there is none, an empty database in WAL mode, its owner's alone. It comes into its place whole: of several
    that would turn WAL on at once, all but one are refused."""
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, draft = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    os.close(descriptor)
    try:
        with closing(sqlite3.connect(draft)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        with suppress(FileExistsError):
            os.link(draft, file)
    finally:
        os.unlink(draft)


def reason(error: BaseException) -> str:
    """What the driver said, without the statement."""
    return str(getattr(error, "orig", None) or error) or type(error).__name__


def on_connect(connection: Any, _: Any) -> None:
    """Readers do not wait for the writer, and what is committed is on the disk. `on_begin` begins transactions, not
    the driver, which would do so too late."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def on_begin(connection: sa.Connection) -> None:
    """A writer takes SQLite's one lock at once: if it read first, it could not get it later."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


class Store:
    """`async with store.begin() as connection` is a transaction, `store.read()` a look."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.is_sqlite = engine.dialect.name == "sqlite"
        if self.is_sqlite:
            sa.event.listen(engine.sync_engine, "connect", on_connect)
            sa.event.listen(engine.sync_engine, "begin", on_begin)
        self._writing = engine.execution_options(writes=True)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed when the block ends, rolled back when it raises."""
        async with self._writing.begin() as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        async with self.engine.connect() as connection:
            yield connection

    def insert(self, table: sa.Table) -> "sqlite.Insert | postgresql.Insert":
        """An insert that knows `on_conflict_do_update`."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    async def changed(self, connection: AsyncConnection, subject: str) -> int:
        """Tells every copy of the subject, in this transaction, that it is old. Returns the number of the change.

        Until the transaction ends no other changes the subject: numbers become visible in their order.
        """
        row = self.insert(changes).values(subject=subject, number=1)
        change = row.on_conflict_do_update(index_elements=[changes.c.subject], set_={"number": changes.c.number + 1})
        return int((await connection.execute(change.returning(changes.c.number))).scalar_one())

    async def number(self, subject: str) -> int:
        """How often the subject has changed."""
        async with self.read() as connection:
            query = sa.select(changes.c.number).where(changes.c.subject == subject)
            return (await connection.execute(query)).scalar() or 0

    async def migrate(self) -> None:
        """Brings the tables up to date; of several processes one does it, the others wait."""
        async with self.begin() as connection:
            await connection.run_sync(migrated)


def migrated(connection: sa.Connection) -> None:
    """In the transaction of this connection. Alembic, which takes longer to import than all else here, is left out
    where there is nothing to do."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATING})")
    if version(connection) == max(file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("0*.py")):
        return
    from alembic import command
    from alembic.config import Config

    logging.getLogger("alembic").setLevel("WARNING")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def version(connection: sa.Connection) -> str | None:
    """Of the last migration that was run; None in a new database."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return found
