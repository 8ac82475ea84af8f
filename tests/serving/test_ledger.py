"""The ledger: every token that an engine has counted, once, whatever becomes of requests, batches and databases."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from engine.asked import Asked
from engine.reading import CHAT
from engine.sim import Fault, Simulator, simulator
from penstock import batches
from penstock.callers import LOCAL, Caller
from penstock.store import Store, opened
from penstock.used import used
from serving.ledger import Cost, Ledger, Rows, Used, used_of
from tests.reliability.client import ask
from tests.serving.conftest import run_gateway

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {"model": "sim", "messages": [{"role": "user", "content": "Count me."}], "max_tokens": 20}
STREAM = BODY | {"stream": True}
KEY = Caller("k1", "team", "tenant")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(f"sqlite:///{tmp_path}/usage.db") as store:
        yield store


@asynccontextmanager
async def gateway_with(ledger: Ledger, *sims: Simulator, **gateway: Any) -> AsyncIterator[httpx2.AsyncClient]:
    engine = {"urls": [sim.url for sim in sims], "routing": {"affinity": "off"}}
    tree: dict[str, Any] = {"engines": {"e": engine}, "models": {"sim": {"engine": "e"}}, "gateway": gateway}
    writing = asyncio.create_task(ledger.run())
    async with run_gateway(hot=True, ledger=ledger, **tree) as client:
        yield client
    writing.cancel()
    await asyncio.wait([writing])


async def sums(store: Store) -> dict[str, Any]:
    (row,) = await used(store, [])
    return row


def counted(*sims: Simulator) -> tuple[int, int]:
    """What the engines have read and written, by their own count."""
    return sum(sim.core.figures.prompt_tokens for sim in sims), sum(sim.core.figures.generation_tokens for sim in sims)


def about(number: int, body: Mapping[str, Any]) -> dict[str, Any]:
    return {**body, "messages": [{"role": "user", "content": f"Count number {number}."}]}


async def test_what_is_written_is_what_the_engine_has_counted(store: Store) -> None:
    async with simulator() as sim:
        async with gateway_with(Ledger(store), sim) as client:
            for number in range(10):
                await ask(str(client.base_url), about(number, STREAM if number % 2 else BODY))
        row = await sums(store)
        assert (row["prompt_tokens"], row["completion_tokens"]) == counted(sim)
    assert (row["requests"], row["estimated"], row["cut"], row["abandoned"]) == (10, 0, 0, 0)


async def test_a_stream_says_its_usage_only_to_who_has_asked(store: Store) -> None:
    async with simulator() as sim, gateway_with(Ledger(store), sim) as client:
        plain = (await client.post(CHAT, json=STREAM)).text
        asked = (await client.post(CHAT, json=STREAM | {"stream_options": {"include_usage": True}})).text
    assert "completion_tokens" not in plain
    assert plain.endswith("data: [DONE]\n\n")
    assert asked.count("completion_tokens") == 1


async def test_of_a_cut_stream_the_engine_is_asked_what_came(store: Store) -> None:
    body = STREAM | {"tools": [{"type": "function", "function": {"name": "f"}}]}  # which cannot be continued
    async with simulator(Fault("cut", after=5)) as sim:
        async with gateway_with(Ledger(store), sim) as client:
            said = await ask(str(client.base_url), body)
            assert not said.done
            await asyncio.sleep(1)
        row = await sums(store)
    assert (row["cut"], row["estimated"]) == (1, 0)
    assert row["completion_tokens"] == 5
    assert row["prompt_tokens"] > 0


async def test_of_several_choices_that_are_cut_each_is_counted_by_itself(store: Store) -> None:
    """Where the text of one ends and that of the other begins, no word spans both."""
    async with simulator(Fault("cut", after=6)) as sim:
        async with gateway_with(Ledger(store), sim) as client:
            for number in range(10):
                said = await ask(str(client.base_url), about(number, STREAM | {"n": 2}))
                assert not said.done
            await asyncio.sleep(1)
        row = await sums(store)
    assert (row["requests"], row["estimated"]) == (row["cut"], 0)
    assert row["completion_tokens"] == 6 * row["requests"] > 0


async def test_a_client_that_leaves_pays_for_what_came(store: Store) -> None:
    async with simulator(itl_s=0.05) as sim:
        async with gateway_with(Ledger(store), sim) as client:
            async with client.stream("POST", CHAT, json=STREAM) as answer:
                lines = answer.aiter_lines()
                while "content" not in await anext(lines):
                    pass
            await asyncio.sleep(0.5)
        row = await sums(store)
    assert (row["requests"], row["abandoned"], row["estimated"]) == (1, 1, 0)
    assert 1 <= row["completion_tokens"] < 20


async def test_a_batch_whose_confirmation_was_lost_is_not_written_twice(store: Store) -> None:
    rows = Rows()
    rows.add(KEY, "m", "2026-11-22", Used(10, 0, 5))
    await batches.write(store, "batch", rows.as_rows())
    await batches.write(store, "batch", rows.as_rows())
    assert (await sums(store))["prompt_tokens"] == 10
    await batches.write(store, "batch", rows.as_rows())
    assert (await sums(store))["prompt_tokens"] == 10


async def test_while_the_database_does_not_answer_nothing_is_lost(store: Store) -> None:
    ledger = Ledger(store)
    async with store.begin():  # the one lock that SQLite has
        ledger.note(KEY, "m", cost({"prompt_tokens": 3, "completion_tokens": 2}), gone=False, cut=False)
        assert not await ledger._flush()
        ledger.note(KEY, "m", cost({"prompt_tokens": 4, "completion_tokens": 1}), gone=False, cut=False)
    await ledger.close()
    row = await sums(store)
    assert (row["requests"], row["prompt_tokens"], row["completion_tokens"]) == (2, 7, 3)


@pytest.mark.parametrize(
    ("usage", "what"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 3}, (9, 0, 3)),
        ({"input_tokens": 9, "output_tokens": 3}, (9, 0, 3)),
        ({"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}, (9, 8, 3)),
        ({"prompt_tokens": 9, "completion_tokens": 21}, None),
        ({"prompt_tokens": 9, "completion_tokens": -1}, None),
        ({"prompt_tokens": 9.5, "completion_tokens": 3}, None),
        ({"prompt_tokens": 0, "completion_tokens": 3}, None),
        ({"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 10}}, None),
    ],
)
def test_figures_that_cannot_be_are_not_believed(usage: dict[str, Any], what: tuple[int, int, int] | None) -> None:
    found = used_of(cost(usage))
    assert (found and (found.prompt_tokens, found.cached_tokens, found.completion_tokens)) == what


def cost(usage: dict[str, Any]) -> Cost:
    return Cost(Asked(CHAT, BODY, written=orjson.dumps(BODY)), None, usage)


def test_who_calls_from_this_machine_has_a_name_in_the_ledger() -> None:
    assert (LOCAL.id, LOCAL.tenant) == ("local", "local")
