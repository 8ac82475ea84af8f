"""Postgres and Redis gone, hung and emptied under load, through whole gateways: no stream is lost, no token counted
wrong, and afterwards everything is as it was."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engine.sim import Simulator, simulator
from penstock.keyring import Keyring, wanted
from penstock.store import opened
from penstock.used import used
from tests.conftest import Served, free_port, running
from tests.databases import Postgres
from tests.redis_server import RedisServer, running_redis
from tests.reliability.client import Caller, ask
from tests.reliability.conftest import ASK, STREAM, about
from tests.reliability.test_processes import PENSTOCK

pytestmark = pytest.mark.anyio

PEPPER = "pepper of the tests, which is long enough"
WORKERS = (1, 2)
CLIENTS = 12  # of each gateway
GENEROUS = {"rpm": 10**6, "tpm": 10**9, "concurrent": 100}
RPM = 10
ITL_S = 0.02


def bearing(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@dataclass
class Load:
    """Streams and whole answers without a pause, and what all that were answered have cost."""

    sim: Simulator
    requests: int = 0
    streams: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def client(self, url: str, key: str) -> None:
        async with Caller(url) as caller:
            while not self.over.is_set():
                await self.one(caller, key)

    async def one(self, caller: Caller, key: str) -> None:
        """Fails for anything but the whole answer."""
        number, self.requests = self.requests, self.requests + 1
        body = about(number, STREAM if number % 3 else ASK)
        said = await caller.ask(body, headers=bearing(key))
        assert said.status == 200, said.error
        expected = self.sim.expected(body)
        if number % 3:
            assert (said.text, said.done) == (expected.text, True)
            self.streams += 1
        else:
            assert said.json["choices"][0]["message"]["content"] == expected.text
        self.prompt_tokens += expected.prompt_tokens
        self.completion_tokens += expected.completion_tokens


@asynccontextmanager
async def gateways(database: str, redis: RedisServer, sim: Simulator, folder: Path) -> AsyncIterator[list[Served]]:
    """One of a single process, one of two workers, with the same state."""
    state = {"database": database, "pepper": PEPPER, "redis": redis.url, "redis_lost": "open"}
    env = {
        "PENSTOCK_STATE": json.dumps(state),
        "PENSTOCK_ENGINES": json.dumps({"e": {"urls": [sim.url]}}),
        "PENSTOCK_MODELS": json.dumps({"sim": {"engine": "e", "concurrent": 64, "queue": 64}}),
        "PENSTOCK_LOG__LEVEL": "warning",
    }
    async with AsyncExitStack() as stack:
        served = []
        for workers in WORKERS:
            port = free_port()
            command = [*PENSTOCK, "serve", "--port", str(port), "--workers", str(workers)]
            context = running(command, port, folder, **env)
            served.append(await asyncio.to_thread(context.__enter__))
            stack.push_async_callback(asyncio.to_thread, context.__exit__, None, None, None)
        yield served


async def test_postgres_and_redis_stopped_and_started_under_load_lose_no_stream(
    postgres: Postgres, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    database = await postgres.fresh()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened(database))
        redis = stack.enter_context(running_redis(tmp_path_factory.mktemp("redis")))
        sim = await stack.enter_async_context(simulator(itl_s=ITL_S))
        ring = Keyring(store, PEPPER.encode())

        async def made(name: str, **fields: Any) -> str:
            return (await ring.create(wanted({"name": name, **fields}), "test")).key

        loading, looking = await made("loading", **GENEROUS), await made("looking", scopes=["metrics"])
        away, hung = await made("away", **GENEROUS), await made("hung", **GENEROUS)
        few = {name: await made(name, rpm=RPM) for name in ("few", "as-few", "no-more")}
        async with gateways(database, redis, sim, tmp_path) as served:
            for one in served:
                one.client.headers |= bearing(looking)
            load = Load(sim)
            async with asyncio.TaskGroup() as clients:
                for one in served * CLIENTS:
                    clients.create_task(load.client(one.url, loading))
                await figures(served, "penstock_limits_shared", 1)
                await postgres_goes(postgres, ring, served, away)
                await postgres_hangs(postgres, ring, served, hung)
                await redis_hangs_and_goes(redis, served)
                await figures(served, "penstock_usage_unwritten", 0)
                load.over.set()
            let_in = await asked_of_all(served, few)
        rows = {row["name"]: row for row in await used(store, ["key"])}
    print(f"{load.requests} requests, {load.streams} of them streams; let in afterwards: {let_in}")
    assert load.streams > 5 * CLIENTS
    assert rows["loading"] == rows["loading"] | {
        "requests": load.requests,
        "prompt_tokens": load.prompt_tokens,
        "completion_tokens": load.completion_tokens,
        "cut": 0,
        "abandoned": 0,
        "estimated": 0,
    }
    assert {name: rows[name]["requests"] for name in let_in} == let_in


async def postgres_goes(postgres: Postgres, ring: Keyring, served: Sequence[Served], key: str) -> None:
    """The key is revoked as soon as that can be done, and known to be within a second."""
    assert await statuses(served, key) == {200}
    postgres.stop()
    try:
        await figures(served, "penstock_usage_unwritten", 1)
        assert await statuses(served, key) == {200}
    finally:
        await asyncio.to_thread(postgres.start)
    await ring.revoke("away", "test")
    await asyncio.sleep(1)
    assert await statuses(served, key) == {401}


async def postgres_hangs(postgres: Postgres, ring: Keyring, served: Sequence[Served], key: str) -> None:
    """The key is revoked meanwhile, as far as that can be done."""
    postgres.signal(signal.SIGSTOP)
    try:
        revoking = asyncio.create_task(ring.revoke("hung", "test"))
        await asyncio.sleep(1.5)
        assert await statuses(served, key) == {200}
        assert not revoking.done()
    finally:
        postgres.signal(signal.SIGCONT)
    await revoking
    await asyncio.sleep(1)
    assert await statuses(served, key) == {401}


async def redis_hangs_and_goes(redis: RedisServer, served: Sequence[Served]) -> None:
    """It comes back as it was, then empty."""
    with redis.frozen():
        await figures(served, "penstock_limits_shared", 0)
    await figures(served, "penstock_limits_shared", 1)
    redis.stop()
    try:
        await figures(served, "penstock_limits_shared", 0)
    finally:
        await asyncio.to_thread(redis.start)
    await figures(served, "penstock_limits_shared", 1)


async def statuses(served: Sequence[Served], key: str, times: int = 8) -> set[int]:
    """What so many new connections to each get: of both workers, most likely."""
    head = f"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\n\r\n".encode()

    async def status(one: Served) -> int:
        async with Caller(one.url) as caller:
            return (await caller.say(head)).status

    return set(await asyncio.gather(*(status(one) for one in served for _ in range(times))))


async def figures(served: Sequence[Served], name: str, value: float, within_s: float = 8) -> None:
    """Waits until each says so. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        for one in served:
            while await asyncio.to_thread(one.figure, name) != value:
                await asyncio.sleep(0.05)


async def asked_of_all(served: Sequence[Served], keys: Mapping[str, str]) -> dict[str, int]:
    """Asks every process for more than a key's minute holds, until a key is let in as often as all together may. A
    Redis that is too slow for a moment, because this machine is busy, lets more in once; processes that count for
    themselves always would."""
    let_in: dict[str, int] = {}
    body = ASK | {"max_tokens": 1}
    for name, key in keys.items():
        said = [await ask(one.url, body, headers=bearing(key)) for one in list(served) * 2 * RPM]
        assert {one.status for one in said} == {200, 429}
        let_in[name] = sum(one.status == 200 for one in said)
        if let_in[name] == RPM:
            return let_in
    raise AssertionError(f"{RPM} requests a minute are allowed, and {let_in} were let in")
