"""Gateways that share a store: keys known and revoked within a second, a database that goes and comes back."""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from engine.scripted import Scripted
from penstock import audit
from penstock.config import Config
from penstock.errors import InvalidKey, StartError
from penstock.keyring import ID, Keyring, digest, rights, wanted
from penstock.store import opened
from penstock.tables import keys, usage
from serving import state as state_module
from serving.keys import Keys
from serving.state import Copy, governed, kept
from tests.databases import Postgres, save
from tests.serving.conftest import run_gateway

pytestmark = pytest.mark.anyio

PEPPER = "pepper of the tests, which is long enough"
CONFIGURED = "sk-0123456789abcdef"
CHAT = "/v1/chat/completions"
SCRIPTED: dict[str, Any] = {
    "engines": {"scripted": {"kind": "scripted"}},
    "models": {"scripted": {"engine": "scripted"}},
}


def ask(model: str = "a") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}]}


def bearing(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def tree(database: str, **more: Any) -> dict[str, Any]:
    return {**SCRIPTED, "state": {"database": database, "pepper": PEPPER}, **more}


@asynccontextmanager
async def gateways(database: str, count: int = 2, **more: Any) -> AsyncIterator[list[httpx2.AsyncClient]]:
    """So many that share a store, each serving the models `a` and `b` beside `scripted`."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                run_gateway({"a": Scripted(), "b": Scripted()}, hot=True, stored=True, **tree(database, **more))
            )
            for _ in range(count)
        ]


@pytest.fixture
async def ring(database: str) -> AsyncIterator[Keyring]:
    async with opened(database) as store:
        yield Keyring(store, PEPPER.encode())


async def status(client: httpx2.AsyncClient, key: str, model: str = "a") -> int:
    return (await client.post(CHAT, json=ask(model), headers=bearing(key))).status_code


async def becomes(code: int, client: httpx2.AsyncClient, key: str, within_s: float = 1.0) -> None:
    deadline = time.monotonic() + within_s
    while await status(client, key) != code:
        assert time.monotonic() < deadline, f"no {code} within {within_s} s"
        await asyncio.sleep(0.02)


async def made(ring: Keyring, name: str = "k", **fields: Any) -> str:
    return (await ring.create(wanted({"name": name, **fields}), "test")).key


async def test_a_key_is_known_and_after_its_revocation_refused_within_a_second_everywhere(
    database: str, ring: Keyring
) -> None:
    await made(ring, "first")
    async with gateways(database) as clients:
        key = await made(ring)
        await asyncio.gather(*(becomes(200, client, key) for client in clients))
        await ring.revoke("k", "test")
        await asyncio.gather(*(becomes(401, client, key) for client in clients))


async def test_revoking_the_only_key_opens_nothing(database: str, ring: Keyring) -> None:
    key = await made(ring)
    async with gateways(database, 1) as (client,):
        assert await status(client, key) == 200
        await ring.revoke("k", "test")
        await becomes(401, client, key)
        assert (await client.get("/v1/models")).status_code == 401
    async with gateways(database, 1) as (client,):
        assert (await client.get("/v1/models")).status_code == 401


async def test_the_first_key_closes_a_gateway_that_was_open_to_this_machine(database: str, ring: Keyring) -> None:
    async with gateways(database, 1) as (client,):
        assert (await client.post(CHAT, json=ask())).status_code == 200
        key = await made(ring)
        deadline = time.monotonic() + 1
        while (await client.post(CHAT, json=ask())).status_code != 401:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert await status(client, key) == 200


async def test_an_updated_key_may_what_it_now_may_everywhere(database: str, ring: Keyring) -> None:
    key = await made(ring, models=["a"])
    async with gateways(database) as clients:
        assert [await status(client, key, "b") for client in clients] == [403, 403]
        await ring.update("k", rights({"models": ["b"], "rpm": 50}), "test")
        await asyncio.gather(*(becomes(403, client, key, 10) for client in clients))
        answers = [await client.post(CHAT, json=ask("b"), headers=bearing(key)) for client in clients]
        assert [(answer.status_code, answer.headers["x-ratelimit-limit-requests"]) for answer in answers] == [
            (200, "50"),
            (200, "50"),
        ]
        await ring.update("k", rights({"models": None, "rpm": None, "guards": "absent"}), "test")
        await asyncio.gather(*(becomes(503, client, key, 10) for client in clients))
        await ring.update("k", rights({"guards": None}), "test")
        await asyncio.gather(*(becomes(200, client, key, 10) for client in clients))
        free = await clients[0].post(CHAT, json=ask("b"), headers=bearing(key))
        assert (free.status_code, "x-ratelimit-limit-requests" in free.headers) == (200, False)


async def test_a_budget_that_a_key_is_given_begins_with_what_it_has_used(database: str, ring: Keyring) -> None:
    new = await ring.create(wanted({"name": "k"}), "test")
    counts = dict.fromkeys(["requests", "cached_tokens", "completion_tokens", "cut", "abandoned", "estimated"], 0)
    row = {"key_id": new.stored.id, "model": "b", "day": f"{datetime.now(UTC):%Y-%m-%d}", "tenant": "k", "name": "k"}
    async with gateways(database, 1) as (client,):
        assert await status(client, new.key) == 200
        async with ring.store.begin() as connection:  # as another gateway writes it
            await connection.execute(usage.insert().values(**row, **counts, prompt_tokens=10**9))
        await ring.update("k", rights({"monthly_tokens": 10**9}), "test")
        await becomes(429, client, new.key, 10)
        await ring.update("k", rights({"monthly_tokens": 2 * 10**9}), "test")
        await becomes(200, client, new.key, 10)


async def test_a_rotated_key_goes_on_until_its_overlap_ends(database: str, ring: Keyring) -> None:
    old = await made(ring)
    async with gateways(database) as clients:
        new = (await ring.rotate("k", 2, "test")).key
        await asyncio.gather(*(becomes(200, client, new) for client in clients))
        assert [await status(client, old) for client in clients] == [200, 200]
        await asyncio.sleep(2)
        assert [await status(client, old) for client in clients] == [401, 401]
        assert [await status(client, new) for client in clients] == [200, 200]


async def test_a_key_expires_by_itself(database: str, ring: Keyring) -> None:
    key = await made(ring, expires="1s")
    async with gateways(database, 1) as (client,):
        await asyncio.sleep(1)
        refused = await client.post(CHAT, json=ask(), headers=bearing(key))
    assert refused.status_code == 401
    assert "has expired" in refused.json()["error"]["message"]


async def test_a_key_sees_and_uses_its_models_alone(database: str, ring: Keyring) -> None:
    key = await made(ring, models=["a", "absent"])
    async with gateways(database, 1) as (client,):
        client.headers |= bearing(key)
        assert [await status(client, key, model) for model in ("a", "b", "nope", "absent")] == [200, 403, 403, 404]
        refused = (await client.post(CHAT, json=ask("b"))).json()["error"]
        listed = (await client.get("/v1/models")).json()
        anthropics = (await client.get("/v1/models", headers={"anthropic-version": "2026-10-21"})).json()
        one = await client.get("/v1/models/b")
    assert (refused["code"], refused["param"]) == ("forbidden", "model")
    assert refused["message"] == "this key may not use 'b', only a, absent"
    assert [model["id"] for model in listed["data"]] == ["a"]
    assert (anthropics["first_id"], anthropics["last_id"]) == ("a", "a")
    assert one.status_code == 403


async def test_a_key_whose_models_are_not_served_here_sees_none(database: str, ring: Keyring) -> None:
    key = await made(ring, models=["absent"])
    async with gateways(database, 1) as (client,):
        for headers in ({}, {"anthropic-version": "2026-10-21"}):
            assert (await client.get("/v1/models", headers={**bearing(key), **headers})).json()["data"] == []


async def test_scopes_say_what_a_key_may_do(database: str, ring: Keyring) -> None:
    by_scopes = {
        ("generate",): [200, 403, 200],
        ("metrics",): [403, 200, 200],
        ("admin",): [403, 403, 200],
        ("generate", "metrics"): [200, 200, 200],
    }
    async with gateways(database, 1) as (client,):
        for number, (scopes, expected) in enumerate(by_scopes.items()):
            key = await made(ring, f"k{number}", scopes=list(scopes))
            await asyncio.sleep(0.5)
            got = [await status(client, key)]
            got += [(await client.get(path, headers=bearing(key))).status_code for path in ("/metrics", "/v1/models")]
            assert got == expected, scopes


async def test_the_keys_of_the_configuration_go_on_working(database: str, ring: Keyring) -> None:
    key = await made(ring)
    async with gateways(database, 1, gateway={"keys": [CONFIGURED]}) as (client,):
        assert [await status(client, each) for each in (key, CONFIGURED, "sk-nobodys-key")] == [200, 200, 401]


async def test_a_gateway_open_to_others_needs_a_key_of_either_kind(database: str, ring: Keyring) -> None:
    async def starts(**gateway: Any) -> None:
        async with kept(Config(**tree(database, gateway={"host": "0.0.0.0", **gateway}))) as state:
            assert state.keys.needed

    with pytest.raises(StartError, match="is reachable by others and no key is set"):
        await starts()
    await starts(keys=[CONFIGURED])
    await made(ring)
    await starts()


async def test_a_gateway_open_to_others_stays_closed_when_its_last_configured_key_goes(database: str) -> None:
    gateway = {"host": "0.0.0.0", "keys": [CONFIGURED]}
    async with kept(Config(**tree(database, gateway=gateway))) as state:
        state.keys.configure([])
        assert state.keys.needed


async def test_another_pepper_is_told_at_the_start(database: str, ring: Keyring) -> None:
    await made(ring)
    config = Config(**SCRIPTED, state={"database": database, "pepper": "another pepper, as long as the first is"})
    with pytest.raises(StartError, match="another pepper"):
        async with kept(config):
            pass


async def test_a_configured_database_that_is_not_there_is_told_at_the_start() -> None:
    with pytest.raises(StartError, match="cannot be used"):
        async with kept(Config(**tree("postgresql://a@127.0.0.1:1/b"))):
            pass


async def test_keys_go_on_while_the_database_is_gone_and_changes_are_known_when_it_is_back(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    database = await postgres.fresh()
    async with opened(database) as store:
        ring = Keyring(store, PEPPER.encode())
        key, other = await made(ring), await made(ring, "other")
        async with gateways(database) as clients:
            postgres.stop()
            try:
                caplog.set_level(logging.WARNING)
                for _ in range(15):
                    assert [await status(client, key) for client in clients] == [200, 200]
                    assert [await status(client, "sk-ps-nobodys0-key") for client in clients] == [401, 401]
                    await asyncio.sleep(0.1)
            finally:
                await asyncio.to_thread(postgres.start)
            await ring.revoke("k", "test")
            await asyncio.gather(*(becomes(401, client, key, within_s=6) for client in clients))
            assert [await status(client, other) for client in clients] == [200, 200]
    lost = [record for record in caplog.records if "the database does not answer" in record.getMessage()]
    assert len(lost) == 2  # one of each gateway
    assert all(record.exc_info is None for record in lost)


async def test_after_a_restore_gateways_forget_what_is_no_longer_there_and_see_what_is_revoked(
    database: str, ring: Keyring, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    first, second = await made(ring, "first"), await made(ring, "second")
    saved = await save(database, tmp_path)
    later = [await made(ring, f"later{number}") for number in range(5)]
    async with gateways(database) as clients:
        assert [await status(client, key) for client in clients for key in (first, later[4])] == [200] * 4
        await saved.put_back()
        await asyncio.gather(*(becomes(401, client, key, within_s=6) for client in clients for key in later))
        assert [await status(client, key) for client in clients for key in (first, second)] == [200] * 4
        await ring.revoke("first", "test")  # whose number is one that was seen before
        await asyncio.gather(*(becomes(401, client, first) for client in clients))
        assert [await status(client, second) for client in clients] == [200, 200]
    assert caplog.text.count("the database has been put back to an earlier state") == 2


async def test_a_restore_that_is_followed_by_many_changes_before_the_next_look_is_seen(
    database: str, ring: Keyring, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    kept_key = await made(ring, "kept")
    saved = await save(database, tmp_path)
    lost = await made(ring, "lost")
    keys = Keys([], ring.pepper)
    copy = Copy(ring, keys, Config(**tree(database)))
    await copy.refresh()
    await saved.put_back()
    new = [await made(ring, f"new{number}") for number in range(5)]
    await ring.revoke("kept", "test")
    assert await copy.refresh()
    for key in (kept_key, lost):
        with pytest.raises(InvalidKey):
            keys.check({b"x-api-key": key.encode()})
    assert [keys.check({b"x-api-key": key.encode()}).name for key in new] == [f"new{number}" for number in range(5)]
    assert "all keys are read again" in caplog.text
    caplog.clear()
    assert not await copy.refresh()
    assert not caplog.records


async def test_a_database_put_back_to_before_its_first_key_opens_nothing(
    database: str, ring: Keyring, tmp_path: Path
) -> None:
    saved = await save(database, tmp_path)
    key = await made(ring)
    async with gateways(database, 1) as (client,):
        assert await status(client, key) == 200
        await saved.put_back()
        await becomes(401, client, key, within_s=6)
        assert (await client.get("/v1/models")).status_code == 401


async def test_a_restore_table_by_table_ends_with_every_key_known(postgres: Postgres, tmp_path: Path) -> None:
    database = await postgres.fresh()
    async with opened(database) as store:
        ring = Keyring(store, PEPPER.encode())
        old = [await made(ring, f"old{number}") for number in range(3)]
        saved = await save(database, tmp_path)
        lost = await made(ring, "lost")
        async with gateways(database, 1) as (client,):
            for _ in range(3):
                await saved.put_back(at_once=False)
                await becomes(401, client, lost, within_s=6)
                await asyncio.gather(*(becomes(200, client, key, within_s=6) for key in old))


async def test_keys_go_on_while_the_database_hangs_and_the_end_does_not_wait_for_it(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(state_module, "PATIENCE_S", 0.5)
    database = await postgres.fresh()
    async with opened(database) as store:
        key = await made(Keyring(store, PEPPER.encode()))
    try:
        async with governed(Config(**tree(database)), ("127.0.0.1", 8000)) as state:
            postgres.signal(signal.SIGSTOP)
            await asyncio.sleep(4)  # SQLAlchemy takes two seconds more to give a connection up
            assert state.keys.check({b"x-api-key": key.encode()}).name == "k"
            began = time.monotonic()
        assert time.monotonic() - began < 6
    finally:
        postgres.signal(signal.SIGCONT)
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "the database does not answer",
        "the audit log does not say that this gateway has ended: TimeoutError",
    ]


async def test_a_stream_goes_on_when_its_key_is_revoked_and_the_next_request_is_refused(
    database: str, ring: Keyring
) -> None:
    key = await made(ring)
    answer = " ".join(f"word{number}" for number in range(20))
    slow = Scripted([answer], pace_s=0.1)
    async with run_gateway({"slow": slow}, hot=True, stored=True, **tree(database)) as client:
        body = {**ask("slow"), "stream": True}
        async with client.stream("POST", CHAT, json=body, headers=bearing(key)) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            await ring.revoke("k", "test")
            await becomes(401, client, key)
            rest = [line async for line in lines]
    assert any("word19" in line for line in rest)
    assert "data: [DONE]" in rest


async def test_start_and_end_stand_in_the_audit_log(database: str) -> None:
    config = Config(**tree(database))
    async with governed(config, ("127.0.0.1", 8000)):
        pass
    async with opened(database) as store:
        entries = await audit.last(store, 2)
    assert [(entry.action, entry.subject) for entry in entries] == [
        ("gateway.started", "127.0.0.1:8000"),
        ("gateway.stopped", "127.0.0.1:8000"),
    ]
    assert entries[0].actor == entries[1].actor == audit.this_process()


async def test_a_canary_key_is_in_no_log_metric_error_or_file(
    tmp_path: Path, ring: Keyring, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = await made(ring, "canary", scopes=["generate", "metrics"])
    secret = key.rpartition("-")[2]
    seen: list[str] = []
    async with gateways(database, 1) as (client,):
        for headers in (
            bearing(key),
            {"x-api-key": key},
            bearing(key + "x"),
            bearing("Q" + key),
            {"x-api-key": key[:-1]},
        ):
            for method, path in [("POST", CHAT), ("POST", "/v1/messages"), ("GET", "/metrics"), ("GET", "/nope")]:
                answer = await client.request(method, path, json=ask("absent"), headers=headers)
                seen.append(f"{answer.headers} {answer.text}")
        await client.post(CHAT, json=ask(), headers=bearing(key))
        seen.append((await client.get("/metrics", headers=bearing(key))).text)
        await ring.revoke("canary", "test")
        await becomes(401, client, key)
        seen.append((await client.post(CHAT, json=ask(), headers=bearing(key))).text)
    seen += [record.getMessage() for record in caplog.records]
    assert not [text for text in seen if secret[:-1] in text]
    assert not [data for data in contents(tmp_path) if secret[:-1].encode() in data]


def contents(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in folder.rglob("*") if file.is_file()]


async def test_ten_thousand_keys_are_all_known(database: str, ring: Keyring) -> None:
    await made(ring)
    sent = [f"sk-ps-{number:08}-{number:043}" for number in range(10_000)]
    async with ring.store.begin() as connection:
        row = dict((await connection.execute(sa.select(keys))).mappings().one())
        many = [{**row, "id": key[ID], "name": key[ID], "digest": digest(ring.pepper, key.encode())} for key in sent]
        await connection.execute(keys.insert(), many)
    async with kept(Config(**tree(database))) as state:
        assert [state.keys.check({b"x-api-key": key.encode()}).name for key in sent] == [key[ID] for key in sent]


async def test_several_workers_with_a_limited_key_need_redis(
    database: str, ring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(**tree(database, gateway={"workers": 2}))
    async with kept(config):
        await made(ring, "limited", rpm=5)
        deadline = time.monotonic() + 2
        while "limits of the key 'limited' hold across 2 workers only with Redis" not in caplog.text:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
    with pytest.raises(StartError, match=r"or gateway\.workers to 1"):
        async with kept(config):
            raise AssertionError("it has started")
