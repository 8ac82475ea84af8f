"""Limits as clients meet them: a gateway with stored keys before a simulated engine, alone or with others and Redis."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from engine.sim import Simulator, simulator
from penstock.keyring import Keyring, pepper, wanted
from penstock.store import opened
from serving import fetching
from tests.redis_server import running_redis
from tests.reliability.client import Caller, Said, ask, post
from tests.reliability.conftest import until
from tests.serving.conftest import run_gateway
from tests.serving.test_pixels import image

pytestmark = pytest.mark.anyio

PEPPER = "pepper of the tests, which is long enough"
BODY: dict[str, Any] = {"model": "sim", "messages": [{"role": "user", "content": "Where is the river?"}]}
STREAM = BODY | {"stream": True}
KEEP = "x-ratelimit-remaining-requests"


@dataclass
class Place:
    """One gateway, or several of one kind: their addresses and the keys to them."""

    ring: Keyring
    clients: list[httpx2.AsyncClient] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return str(self.clients[0].base_url)

    async def make(self, name: str, **limits: Any) -> None:
        self.keys[name] = (await self.ring.create(wanted({"name": name, **limits}), "test")).key

    async def ask(self, name: str, body: dict[str, Any] = BODY, gateway: int = 0, **headers: str) -> Said:
        sent = {"authorization": f"Bearer {self.keys[name]}"} | {
            header.replace("_", "-"): value for header, value in headers.items()
        }
        return await ask(str(self.clients[gateway].base_url), body, headers=sent)


@asynccontextmanager
async def serving(
    sim: Simulator, folder: Path, keys: dict[str, dict[str, Any]], *, count: int = 1, hot: bool = True, **more: Any
) -> AsyncIterator[Place]:
    """`keys`: name -> limits; `more`: limits of the model `sim`, and `redis`."""
    database = f"sqlite:///{folder}/p.db"
    state = {"database": database, "pepper": PEPPER, "redis": more.pop("redis", None)}
    tree: dict[str, Any] = {
        "engines": {"e": {"urls": [sim.url]}},
        "models": {"sim": {"engine": "e", **more}},
        "state": state,
    }
    async with opened(database) as store, AsyncExitStack() as stack:
        place = Place(Keyring(store, pepper(SecretStr(PEPPER))))
        for name, limits in keys.items():
            await place.make(name, **limits)
        for _ in range(count):
            place.clients.append(await stack.enter_async_context(run_gateway(hot=hot, stored=True, **tree)))
        yield place


@pytest.mark.parametrize("hot", [True, False], ids=["protocol", "asgi"])
async def test_every_answer_to_a_limited_key_tells_its_limits(tmp_path: Path, hot: bool) -> None:
    async with simulator() as sim, serving(sim, tmp_path, {"k": {"rpm": 4, "tpm": 10_000}, "free": {}}, hot=hot) as at:
        whole = await at.ask("k")
        stream = await at.ask("k", STREAM)
        bad = await at.ask("k", {**BODY, "messages": "?"})
        other = await at.ask("k", {**BODY, "max_tokens": 100_000})  # which the engine refuses
        last = await at.ask("k")
        refused = await at.ask("k")
        free = await at.ask("free")
    assert [said.status for said in (whole, stream, bad, other, last, refused)] == [200, 200, 400, 400, 200, 429]
    assert [said.headers[KEEP] for said in (whole, stream, bad, other, last, refused)] == list("322100")
    for said in (whole, stream, bad, other, last, refused):
        names = {name for name in said.headers if name.startswith("x-ratelimit-")}
        assert len(names) == 6
        assert said.headers["x-ratelimit-limit-tokens"] == "10000"
    assert refused.error == {
        "message": f"this key's limit is 4 requests a minute; try again in {refused.headers['retry-after']} s",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert 55 <= int(refused.headers["retry-after"]) <= 61
    assert not any(name.startswith("x-ratelimit-") for name in free.headers)


async def test_tokens_settle_to_what_the_engine_has_counted(tmp_path: Path) -> None:
    async with simulator() as sim, serving(sim, tmp_path, {"k": {"tpm": 100_000}}) as at:
        for body in (BODY, STREAM, BODY | {"max_tokens": 5}, STREAM | {"max_tokens": 7}):
            await at.ask("k", body)
        probe = await at.ask("k", BODY | {"max_tokens": 1})
        counted = sim.core.figures.prompt_tokens + sim.core.figures.generation_tokens
        told = 100_000 - int(probe.headers["x-ratelimit-remaining-tokens"])
    asked_for = len("user\nWhere is the river?") // 4 + 1  # what is reserved for the probe
    spent = counted - probe.json["usage"]["total_tokens"]
    assert told == spent + asked_for


async def test_a_stream_counts_as_it_runs(tmp_path: Path) -> None:
    async with simulator(itl_s=0.005, mean_tokens=2000) as sim:
        async with serving(sim, tmp_path, {"k": {"tpm": 300}}) as at:
            async with Caller(at.url) as caller:
                key = {"authorization": f"Bearer {at.keys['k']}"}
                await caller.send(post(STREAM, headers=key))
                await until(lambda: sim.running == 1)
                assert (await at.ask("k", BODY | {"max_tokens": 1})).status == 200
                await asyncio.sleep(2.3)
                refused = await at.ask("k", BODY | {"max_tokens": 1})
            assert refused.status == 429
            assert "300 tokens a minute" in (refused.error or {})["message"]


async def test_a_client_that_leaves_frees_what_it_held(tmp_path: Path) -> None:
    async with simulator(itl_s=1.0) as sim, serving(sim, tmp_path, {"k": {"concurrent": 1}}) as at:
        waits = asyncio.create_task(at.ask("k", STREAM))
        await until(lambda: sim.running == 1)
        assert (await at.ask("k")).status == 429
        waits.cancel()
        await until(lambda: sim.running == 0)
        assert (await at.ask("k", BODY | {"max_tokens": 1})).status == 200


async def test_one_who_leaves_the_queue_is_never_sent_on_nor_charged(tmp_path: Path) -> None:
    async with simulator(itl_s=0.02) as sim, serving(sim, tmp_path, {"k": {}}, concurrent=1) as at:
        first = asyncio.create_task(at.ask("k", BODY | {"max_tokens": 20}))
        await until(lambda: sim.running == 1)
        second = asyncio.create_task(at.ask("k"))
        await asyncio.sleep(0.05)
        second.cancel()
        assert (await first).status == 200
        await asyncio.sleep(0.1)
        assert (sim.started, sim.waiting) == (1, 0)
        assert (await at.ask("k")).status == 200


async def test_more_than_the_model_takes_waits_and_then_is_refused_with_when_to_come_again(tmp_path: Path) -> None:
    async with simulator(itl_s=0.02) as sim:
        async with serving(sim, tmp_path, {"k": {"rpm": 1000}}, concurrent=4, queue=8) as at:
            said = await asyncio.gather(*(at.ask("k", BODY | {"max_tokens": 10}) for _ in range(40)))
    assert Counter(one.status for one in said) == {200: 12, 503: 28}
    for one in said:
        if one.status == 503:
            assert one.error == {
                "message": "sim is busy and its queue is full",
                "type": "server_error",
                "param": None,
                "code": "overloaded",
            }
            assert int(one.headers["retry-after"]) >= 1
            assert KEEP in one.headers


async def test_a_deadline_that_cannot_be_met_is_told_at_once(tmp_path: Path) -> None:
    async with simulator(itl_s=0.05) as sim, serving(sim, tmp_path, {"k": {}}, concurrent=1) as at:
        body = BODY | {"max_tokens": 20}
        await at.ask("k", body)
        running = [asyncio.create_task(at.ask("k", body)) for _ in range(2)]
        await until(lambda: sim.running == 1)
        began = time.perf_counter()
        refused = await at.ask("k", body, x_request_timeout_s="0.9")
        took_s = time.perf_counter() - began
        assert (refused.status, (refused.error or {})["code"]) == (503, "overloaded")
        assert took_s < 0.5
        assert [one.status for one in await asyncio.gather(*running)] == [200, 200]


async def test_a_retried_post_with_its_body_in_two_pieces_is_limited_too(tmp_path: Path) -> None:
    async with simulator() as sim, serving(sim, tmp_path, {"k": {"rpm": 1}}) as at:
        raw = post(BODY, headers={"authorization": f"Bearer {at.keys['k']}"})
        statuses = []
        for _ in range(2):
            async with Caller(at.url) as caller:
                await caller.send(raw[:-10])
                await asyncio.sleep(0.05)
                caller.more(raw[-10:])
                statuses.append((await caller.answer()).status)
        assert statuses == [200, 429]


@pytest.mark.parametrize("hot", [True, False], ids=["protocol", "asgi"])
async def test_nothing_is_fetched_for_who_is_over_the_limit_and_fetching_holds_a_place(
    tmp_path: Path, hot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = asyncio.Event()
    names: list[str] = []

    async def resolved(host: str, port: int) -> list[str]:
        names.append(host)
        await goes_on.wait()
        return ["127.0.0.1"]  # which is refused

    monkeypatch.setattr(fetching, "resolved", resolved)
    keys = {"k": {"concurrent": 1, "tpm": 5000, "scopes": ["generate", "any-media"]}}
    body = image("http://images.example/")
    async with simulator() as sim, serving(sim, tmp_path, keys, hot=hot) as at:
        fetching_one = asyncio.create_task(at.ask("k", body))
        await until(lambda: len(names) == 1)
        refused = [await at.ask("k", body) for _ in range(3)]
        goes_on.set()
        first = await fetching_one
        last = await at.ask("k", BODY | {"max_tokens": 1})
        assert not any(b"image" in request.raw for request in sim.requests)
    assert [said.status for said in refused] == [429] * 3
    assert len(names) == 1
    assert first.error
    assert (first.status, first.error["param"]) == (400, "messages[0].content[0].image_url.url")
    assert last.status == 200
    reserved = 5000 - int(first.headers["x-ratelimit-remaining-tokens"])
    assert 256 + 1024 <= reserved < 256 + 1024 + 50  # the answer, and a picture that is yet to come
    assert int(last.headers["x-ratelimit-remaining-tokens"]) > 5000 - 50  # of which nothing came


async def latencies(asking: Callable[[], Awaitable[Said]], times: int) -> list[float]:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        assert (await asking()).status == 200
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.05)
    return sorted(took)


@pytest.mark.parametrize("count", [1, 3], ids=["alone", "with redis"])
async def test_a_quiet_tenant_waits_no_more_than_twice_as_long_beside_one_that_floods(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, count: int
) -> None:
    """By the median: behind a queue that is not fair it would be fifteen times. `benchmarks/fairness.py` measures p99,
    which a busy machine moves."""
    body = BODY | {"max_tokens": 10}
    async with AsyncExitStack() as stack:
        more: dict[str, Any] = {}
        if count > 1:
            more["redis"] = stack.enter_context(running_redis(tmp_path_factory.mktemp("redis"))).url
        sim = await stack.enter_async_context(simulator(itl_s=0.02))
        keys: dict[str, dict[str, Any]] = {"flood": {}, "quiet": {}}
        at = await stack.enter_async_context(serving(sim, tmp_path, keys, count=count, concurrent=4, queue=200, **more))
        quiet = count - 1
        alone = await latencies(lambda: at.ask("quiet", body, quiet), 20)
        over = asyncio.Event()

        async def flood(gateway: int) -> int:
            served = 0
            while not over.is_set():
                served += (await at.ask("flood", body, gateway)).status == 200
            return served

        flooding = [asyncio.create_task(flood(number % count)) for number in range(60)]
        await asyncio.sleep(0.5)
        beside = await latencies(lambda: at.ask("quiet", body, quiet), 20)
        over.set()
        served = sum(await asyncio.gather(*flooding))
        assert beside[len(beside) // 2] <= 2 * alone[len(alone) // 2] + 0.05, (alone, beside)
        assert served > 100
