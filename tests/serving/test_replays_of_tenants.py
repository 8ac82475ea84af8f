"""Answers given again: to whom, for how many tokens, in whose place."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from engine.sim import Simulator, simulator
from penstock.keyring import Keyring, wanted
from penstock.store import Store, opened
from penstock.tables import keys
from penstock.used import used
from serving.ledger import Ledger
from tests.reliability.client import CHAT, Caller, ask, post
from tests.reliability.conftest import ASK, STREAM, about, until
from tests.serving.conftest import run_gateway
from tests.serving.test_replays import CACHE, GREEDY, KEY, REPLAYED

pytestmark = pytest.mark.anyio

PEPPER = "pepper of the tests, which is long enough"


@asynccontextmanager
async def charged(sim: Simulator, store: Store, **model: Any) -> AsyncIterator[str]:
    """The address of a gateway that writes down what was used."""
    ledger = Ledger(store)
    tree: dict[str, Any] = {"engines": {"e": {"urls": [sim.url]}}, "models": {"sim": {"engine": "e", **model}}}
    async with run_gateway(hot=True, ledger=ledger, response_cache={"enabled": True}, **tree) as client:
        yield str(client.base_url)
    await ledger.close()


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    async with opened(f"sqlite:///{tmp_path}/usage.db") as store:
        yield store


async def sums(store: Store) -> tuple[dict[str, Any], tuple[int, int]]:
    (row,) = await used(store, [])
    return row, (row["prompt_tokens"], row["completion_tokens"])


async def test_what_is_given_again_is_not_charged(store: Store) -> None:
    async with simulator(itl_s=0.002) as sim, charged(sim, store) as url:
        for body in (ASK, STREAM):
            key = {"idempotency-key": str(body)}
            said = await asyncio.gather(*(ask(url, body, headers=key) for _ in range(10)))
            said += [await ask(url, body, headers=key)]
            assert sum(REPLAYED in one.headers for one in said) == 10
        said = await asyncio.gather(*(ask(url, GREEDY) for _ in range(10)))
        assert sum(one.headers[CACHE] == "hit" for one in said) == 9
        assert sim.started == 3
    row, tokens = await sums(store)
    assert tokens == (sim.core.figures.prompt_tokens, sim.core.figures.generation_tokens)
    assert (row["requests"], row["cut"], row["abandoned"]) == (3, 0, 0)


async def test_a_generation_is_charged_once_whoever_stays(store: Store) -> None:
    async with simulator(itl_s=0.02) as sim, charged(sim, store) as url:
        async with Caller(url) as first, Caller(url) as second:
            await first.send(post(STREAM, headers=KEY))
            await until(lambda: sim.running == 1)
            await second.send(post(STREAM, headers=KEY))
            await asyncio.sleep(0.1)
            first.leave()
            assert (await second.answer()).done
    row, tokens = await sums(store)
    assert tokens == (sim.core.figures.prompt_tokens, sim.core.figures.generation_tokens)
    assert (row["requests"], row["abandoned"]) == (1, 0)


async def test_one_that_everybody_has_left_is_charged_as_abandoned(store: Store) -> None:
    async with simulator(itl_s=0.02) as sim, charged(sim, store) as url:
        async with Caller(url) as first, Caller(url) as second:
            for caller in (first, second):
                await caller.send(post(STREAM, headers=KEY))
            await until(lambda: sim.running == 1)
            await asyncio.sleep(0.2)
        await until(lambda: sim.aborted == 1)
        await asyncio.sleep(0.3)  # the engine is asked to count
    row, (prompt, _) = await sums(store)
    assert (row["requests"], row["abandoned"], prompt) == (1, 1, sim.core.figures.prompt_tokens)


async def test_a_generation_has_one_place_and_keeps_it_as_long_as_it_runs(store: Store) -> None:
    async with simulator(itl_s=0.02) as sim, charged(sim, store, concurrent=1, queue=0) as url:
        async with Caller(url) as first, Caller(url) as second:
            await first.send(post(STREAM, headers=KEY))
            await until(lambda: sim.running == 1)
            await second.send(post(STREAM, headers=KEY))
            await asyncio.sleep(0.1)
            first.leave()
            await asyncio.sleep(0.1)
            assert (await ask(url, about(1, ASK))).status == 503
            assert (await second.answer()).done
            assert (await ask(url, about(1, ASK))).status == 200
            again = await ask(url, STREAM, headers=KEY)
            assert (again.done, again.headers[REPLAYED]) == (True, "true")


@pytest.mark.parametrize("headers", [{}, KEY], ids=["cache", "key"])
async def test_each_key_is_a_tenant_unless_it_shares_one(tmp_path: Path, headers: dict[str, str]) -> None:
    database = f"sqlite:///{tmp_path}/keys.db"
    async with opened(database) as store, simulator() as sim:
        ring = Keyring(store, PEPPER.encode())
        made = [
            await ring.create(wanted({"name": name, **tenant}), "test")
            for name, tenant in {"a": {}, "b": {}, "c": {"tenant": "d"}, "e": {"tenant": "d"}}.items()
        ]
        tree: dict[str, Any] = {"engines": {"e": {"urls": [sim.url]}}, "models": {"sim": {"engine": "e"}}}
        tree |= {"state": {"database": database, "pepper": PEPPER}, "response_cache": {"enabled": True}}
        async with run_gateway(hot=True, stored=True, **tree) as client:
            answers = [await post_as(client, one.key, headers) for one in made]
            assert {answer.status_code for answer in answers} == {200}
            assert sim.started == 3
            mark = REPLAYED if headers else CACHE
            given = [answer.headers.get(mark) in ("true", "hit") for answer in answers]
            assert given == [False, False, False, True]


@pytest.mark.parametrize("headers", [{}, KEY], ids=["cache", "key"])
async def test_who_may_not_ask_is_not_given_what_another_key_of_the_tenant_was(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    database = f"sqlite:///{tmp_path}/keys.db"
    raw = {"chat_template": "{{ messages }}"}
    async with opened(database) as store, simulator() as sim:
        ring = Keyring(store, PEPPER.encode())
        may = {"all": {"scopes": ["generate", "raw-fields"]}, "one": {"models": ["other"]}, "gone": {}}
        made = {
            name: (await ring.create(wanted({"name": name, "tenant": "d", **what}), "test")).key
            for name, what in may.items()
        }
        tree: dict[str, Any] = {"engines": {"e": {"urls": [sim.url]}}}
        tree |= {"models": {"sim": {"engine": "e"}, "other": {"engine": "e"}}, "response_cache": {"enabled": True}}
        tree |= {"state": {"database": database, "pepper": PEPPER}}
        async with run_gateway(hot=True, stored=True, **tree) as client:
            first = await post_as(client, made["all"], headers)
            assert first.status_code == 200
            assert (await post_as(client, made["gone"], headers)).content == first.content
            assert (await post_as(client, made["one"], headers)).status_code == 403
            unusual = headers and {"idempotency-key": "raw"}
            assert (await post_as(client, made["all"], unusual, **raw)).status_code == 200
            assert (await post_as(client, made["gone"], unusual, **raw)).status_code == 403
            await ring.revoke("gone", "test")
            async with asyncio.timeout(5):
                while (await post_as(client, made["gone"], headers)).status_code != 401:
                    await asyncio.sleep(0.1)
            assert sim.started == 2


@pytest.mark.parametrize("headers", [{}, KEY], ids=["cache", "key"])
async def test_a_stored_key_from_before_tenants_were_reserved_shares_nothing_with_configured_ones(
    tmp_path: Path, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    database = f"sqlite:///{tmp_path}/keys.db"
    configured = ["sk-configured-0001", "sk-configured-0002"]
    async with opened(database) as store, simulator() as sim:
        ring = Keyring(store, PEPPER.encode())
        made = [await ring.create(wanted({"name": name}), "test") for name in ("old", "older")]
        async with store.begin() as connection:
            await connection.execute(keys.update().values(tenant="config"))
        tree: dict[str, Any] = {"engines": {"e": {"urls": [sim.url]}}, "models": {"sim": {"engine": "e"}}}
        tree |= {"state": {"database": database, "pepper": PEPPER}, "response_cache": {"enabled": True}}
        async with run_gateway(hot=True, stored=True, gateway={"keys": configured}, **tree) as client:
            asking = [*configured, *(one.key for one in made)]
            answers = [await post_as(client, key, headers) for key in asking]
        mark = REPLAYED if headers else CACHE
        given = [answer.headers.get(mark) in ("true", "hit") for answer in answers]
        assert given == [False, True, False, True]
        assert {row["tenant"] for row in await used(store, ["tenant"])} == {"config", "config (stored)"}
        assert [key.described()["tenant"] for key in await ring.all()] == ["config", "config"]
    assert "the tenant of the key 'old', config, is that of callers whose keys are not stored" in caplog.text


async def test_limits_of_an_answer_are_not_told_again(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/keys.db"
    async with opened(database) as store, simulator() as sim:
        one = await Keyring(store, PEPPER.encode()).create(wanted({"name": "a", "rpm": 2}), "test")
        tree: dict[str, Any] = {"engines": {"e": {"urls": [sim.url]}}, "models": {"sim": {"engine": "e"}}}
        tree |= {"state": {"database": database, "pepper": PEPPER}}
        async with run_gateway(hot=True, stored=True, **tree) as client:
            first, again = [await post_as(client, one.key, KEY) for _ in range(2)]
            assert first.headers["x-ratelimit-remaining-requests"] == "1"
            assert not [name for name in again.headers if name.startswith("x-ratelimit")]
            assert (await post_as(client, one.key, {})).status_code == 200
            assert (await post_as(client, one.key, {})).status_code == 429
            assert (await post_as(client, one.key, KEY)).status_code == 200
            assert sim.started == 2


async def post_as(client: httpx2.AsyncClient, key: str, headers: dict[str, str], **body: Any) -> httpx2.Response:
    return await client.post(CHAT, json=GREEDY | body, headers={"authorization": f"Bearer {key}", **headers})
