"""Debian's Postgres, started for this run of the tests on a free port, and a fresh database for each test."""

import asyncio
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

START_S = 60
USER = "postgres"


@dataclass(frozen=True)
class Postgres:
    """A server that runs, or ran: `stop` and `start` are for the tests that need it gone."""

    binaries: Path
    data: Path
    port: int

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    async def fresh(self) -> str:
        """The URL of a new database."""
        name = f"t{uuid.uuid4().hex}"
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
        return self.url(name)

    def start(self) -> None:
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        settings["autovacuum"] = "off"  # it would go through hundreds of databases again and again
        options = " ".join([f"-p {self.port}", *(f"-c {name}={value}" for name, value in settings.items())])
        self._control("start", "-w", "-t", str(START_S), "-l", str(self.data / "log"), "-o", options)

    @asynccontextmanager
    async def over_tls(self) -> AsyncIterator[Path]:
        """While the block runs it speaks TLS, too. The file of the authority that has signed its certificate."""
        folder = self.data.parent
        key, certificate = folder / "tls.key", folder / "tls.crt"
        words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        words += ["-subj", "/CN=penstock tests", "-addext", "subjectAltName=IP:127.0.0.1"]
        as_postgres(["openssl", *words, "-keyout", key, "-out", certificate])
        await self._setting(f"SET ssl_key_file = '{key}'", f"SET ssl_cert_file = '{certificate}'", "SET ssl = on")
        try:
            yield certificate
        finally:
            await self._setting("RESET ssl", "RESET ssl_key_file", "RESET ssl_cert_file")

    async def _setting(self, *changes: str) -> None:
        """Returns when new connections find them."""
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            loaded = await connection.fetchval("SELECT pg_conf_load_time()")
            for change in changes:
                await connection.execute(f"ALTER SYSTEM {change}")
            await connection.execute("SELECT pg_reload_conf()")
        finally:
            await connection.close()
        while True:
            connection = await asyncpg.connect(self.url("postgres"))
            try:
                if await connection.fetchval("SELECT pg_conf_load_time()") > loaded:
                    return
            finally:
                await connection.close()
            await asyncio.sleep(0.05)

    def stop(self) -> None:
        """As a crash: whoever is connected is cut off."""
        self._control("stop", "-m", "immediate")

    def signal(self, number: int) -> None:
        """To every process of it: SIGSTOP makes it hang."""
        leader = int((self.data / "postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
        for pid in (leader, *map(int, children)):
            os.kill(pid, number)

    def _control(self, *words: str) -> None:
        as_postgres([self.binaries / "pg_ctl", "-D", self.data, *words])


@dataclass(frozen=True)
class Saved:
    """A database as it was, to be put back while others use it."""

    database: str
    file: Path

    async def put_back(self, *, at_once: bool = True) -> None:
        """`at_once`: in one transaction; else table by table, as `pg_restore --clean` does."""
        if self.database.startswith("sqlite"):
            return copy(self.file, sqlite_file(self.database))
        words = ["--clean", *(["--single-transaction"] if at_once else []), "--dbname", self.database, str(self.file)]
        await asyncio.to_thread(subprocess.run, ["pg_restore", *words], check=True)


async def save(database: str, folder: Path) -> Saved:
    """With SQLite's own means, or Postgres's."""
    saved = Saved(database, folder / "saved")
    if database.startswith("sqlite"):
        copy(sqlite_file(database), saved.file)
    else:
        words = ["pg_dump", "--format=custom", "--file", str(saved.file), database]
        await asyncio.to_thread(subprocess.run, words, check=True)
    return saved


def sqlite_file(database: str) -> Path:
    return Path(database.removeprefix("sqlite:///"))


def copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(target, timeout=10)) as writing:
        reading.backup(writing)


def as_postgres(words: list[str | Path]) -> None:
    """Postgres refuses to run as root."""
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*user, *words], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Skips the test where Postgres is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.skip("Debian's Postgres is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="penstock-postgres-"))  # pytest's own folders are closed to other users
    try:
        if os.geteuid() == 0:
            owner = pwd.getpwnam(USER)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        server = Postgres(found[-1].parent, folder / "data", unused_port())
        as_postgres(
            [server.binaries / "initdb", "-D", server.data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync"]
        )
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
