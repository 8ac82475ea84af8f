"""The store, with SQLite and with Postgres: made, brought up to date, shared by processes, gone."""

import asyncio
import multiprocessing
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from penstock.errors import StartError
from penstock.store import UNAVAILABLE, Store, migrated, opened
from penstock.tables import changes, metadata
from tests.databases import Postgres

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with opened(SecretStr(database)) as store:
        yield store


async def test_the_migrations_make_the_tables_that_the_code_knows(store: Store) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        from alembic.autogenerate import compare_metadata
        from alembic.runtime.migration import MigrationContext

        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with store.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_store_that_is_up_to_date_is_left_alone(database: str) -> None:
    for _ in range(3):
        async with opened(database) as store:
            async with store.begin() as connection:
                number = await store.changed(connection, "keys")
    assert number == 3


def open_and_change(database: str) -> None:
    """In a process of its own."""

    async def change() -> None:
        async with opened(database) as store:
            async with store.begin() as connection:
                await store.changed(connection, "keys")

    asyncio.run(change())


def test_alembic_is_not_imported_where_nothing_is_to_be_done(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from penstock.store import opened

async def main():
    async with opened("sqlite:///{tmp_path / "x.db"}"):
        print("alembic" in sys.modules)

asyncio.run(main())
"""
    shown = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)]
    assert shown == ["True\n", "False\n"]


async def test_several_that_open_a_new_store_at_once_make_it_once(database: str) -> None:
    context = multiprocessing.get_context("spawn")
    openers = [context.Process(target=open_and_change, args=(database,)) for _ in range(4)]
    for opener in openers:
        opener.start()
    for opener in openers:
        await asyncio.to_thread(opener.join, 60)
    assert [opener.exitcode for opener in openers] == [0] * 4
    async with opened(database) as store:
        assert await store.number("keys") == 4


async def test_what_raises_is_rolled_back(store: Store) -> None:
    async def fail() -> None:
        async with store.begin() as connection:
            await store.changed(connection, "keys")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await store.number("keys") == 0


async def test_writers_wait_for_each_other_and_lose_nothing(store: Store) -> None:
    async def write(times: int) -> None:
        for _ in range(times):
            async with store.begin() as connection:
                before = await connection.scalar(sa.select(sa.func.count()).select_from(changes))
                assert before is not None
                await store.changed(connection, "keys")

    await asyncio.gather(*(write(10) for _ in range(5)))
    assert await store.number("keys") == 50


async def test_a_reader_does_not_wait_for_a_writer(store: Store) -> None:
    async with store.begin() as connection:
        await store.changed(connection, "keys")
        assert await asyncio.wait_for(store.number("keys"), 2) == 0
    assert await store.number("keys") == 1


async def test_the_audit_log_cannot_be_changed_by_a_slip(store: Store) -> None:
    from penstock import audit

    await audit.note(store, "me", "config.reloaded", "p.yaml")
    for statement in ("UPDATE audit SET actor = 'you'", "DELETE FROM audit"):
        with pytest.raises(UNAVAILABLE, match="append-only"):
            async with store.begin() as connection:
                await connection.exec_driver_sql(statement)


async def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "penstock.db"
    async with opened(f"sqlite:///{file}"):
        assert {stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()} == {0o600}
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:secret-word@h:port/x",
        "mysql://x",
        "sqlite://",
        "nonsense",
        "sqlite:///",
        "postgresql//secret-word",
        "://secret-word@",
    ],
)
async def test_an_address_of_no_database_is_told_without_repeating_it(url: str) -> None:
    with pytest.raises(StartError, match=r"state\.database must be") as raised:
        async with opened(url):
            pass
    assert "secret-word" not in str(raised.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("sslmod=require", "unknown parameter 'sslmod', did you mean 'sslmode'? accepted are sslmode, sslrootcert,"),
        ("colour=red", "unknown parameter 'colour': accepted are sslmode, sslrootcert, "),
        ("password=secret-word", "unknown parameter 'password'"),
        ("sslmode=yes", "sslmode must be one of disable, allow, prefer, require, verify-ca, verify-full"),
        ("sslmode=", "the parameter sslmode has no value"),
        ("sslmode", "the parameter sslmode has no value"),
        ("connect_timeout=1&sslmode&host=a", "the parameter sslmode has no value"),
        ("sslmode=require&sslmode=disable", "the parameter sslmode stands there more than once"),
        ("connect_timeout=soon", "connect_timeout must be a whole number, 1 or more"),
        ("connect_timeout=0", "connect_timeout must be a whole number, 1 or more"),
        (
            "sslmode=verify-full&sslrootcert=/no/ca.pem",
            "sslrootcert names '/no/ca.pem', which cannot be read",
        ),
    ],
)
async def test_a_parameter_of_the_address_that_cannot_be_used_is_told_by_its_name(
    parameters: str, message: str
) -> None:
    with pytest.raises(StartError) as raised:
        async with opened(f"postgresql://penstock:secret-word@127.0.0.1:1/penstock?{parameters}"):
            pass
    assert raised.value.message.startswith(f"state.database: {message}")
    assert "secret-word" not in str(raised.value)


async def test_sqlite_takes_no_parameters(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="unknown parameter 'mode': a URL of SQLite has none"):
        async with opened(f"sqlite:///{tmp_path}/x.db?mode=ro"):
            pass


async def said(database: str, query: str) -> object:
    async with opened(database) as store, store.read() as connection:
        return (await connection.exec_driver_sql(query)).scalar()


ENCRYPTED = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


async def test_libpqs_parameters_do_what_they_do_there(postgres: Postgres) -> None:
    database = await postgres.fresh()
    assert await said(f"{database}?application_name=penstock-7&connect_timeout=3", "SHOW application_name") == (
        "penstock-7"
    )
    assert await said(f"{database}?sslmode=prefer&prepared_statement_cache_size=0", ENCRYPTED) is False
    elsewhere = database.replace("127.0.0.1", "").replace(f":{postgres.port}", "")
    assert await said(f"{elsewhere}?host=127.0.0.1:{postgres.port}", "SELECT 1") == 1
    with pytest.raises(StartError, match="rejected SSL upgrade"):
        await said(f"{database}?sslmode=require", ENCRYPTED)


async def test_over_tls_the_mode_says_how_much_is_verified(postgres: Postgres, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=other", "-out", str(other)]
    await asyncio.to_thread(
        subprocess.run, ["openssl", *words, "-keyout", str(tmp_path / "key")], check=True, capture_output=True
    )
    database = await postgres.fresh()
    by_name = database.replace("127.0.0.1", "localhost")
    async with postgres.over_tls() as authority:
        for parameters, expected in {
            "sslmode=disable": False,
            "sslmode=prefer": True,
            "sslmode=require": True,
            f"sslmode=require&sslrootcert={authority}": True,
            f"sslmode=verify-ca&sslrootcert={authority}": True,
            f"sslmode=verify-full&sslrootcert={authority}": True,
        }.items():
            assert await said(f"{database}?{parameters}", ENCRYPTED) is expected, parameters
        assert await said(f"{by_name}?sslmode=verify-ca&sslrootcert={authority}", ENCRYPTED) is True
        for refused in (
            f"{by_name}?sslmode=verify-full&sslrootcert={authority}",
            f"{database}?sslmode=verify-ca&sslrootcert={other}",
            f"{database}?sslmode=require&sslrootcert={other}",
        ):
            with pytest.raises(StartError, match="certificate verify failed"):
                await said(refused, ENCRYPTED)
        with pytest.raises(StartError, match=r"root certificate file .* does not exist"):
            await said(f"{database}?sslmode=verify-full", ENCRYPTED)


async def test_a_database_that_is_not_there_is_told_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url in ("postgresql://penstock:secret-word@127.0.0.1:1/penstock", f"sqlite:///{tmp_path}/file/penstock.db"):
        with pytest.raises(StartError, match="cannot be used") as raised:
            async with opened(url):
                pass
        assert "secret-word" not in str(raised.value)


async def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("not a database, and long enough to be read as one" * 100)
    with pytest.raises(StartError, match="not a database"):
        async with opened(f"sqlite:///{tmp_path / 'x.db'}"):
            pass


async def test_a_password_that_is_wrong_is_told(postgres: Postgres) -> None:
    with pytest.raises(StartError, match="does not exist"):
        async with opened(postgres.url("absent")):
            pass


async def test_a_store_whose_server_comes_back_is_used_again(postgres: Postgres) -> None:
    async with opened(await postgres.fresh()) as store:
        async with store.begin() as connection:
            await store.changed(connection, "keys")
        postgres.stop()
        try:
            with pytest.raises(UNAVAILABLE):
                await store.number("keys")
        finally:
            postgres.start()
        assert await store.number("keys") == 1


async def test_the_tables_can_be_taken_down_again(store: Store) -> None:
    def down(connection: sa.Connection) -> set[str]:
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path("penstock/migrations").absolute()))
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        left = set(sa.inspect(connection).get_table_names())
        migrated(connection)
        return left

    async with store.begin() as connection:
        assert await connection.run_sync(down) == {"alembic_version"}
    assert await store.number("keys") == 0
