"""Slots, queue, pace, prefix cache and figures of the simulated engine; a client that leaves ends its generation."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine import gauges
from engine.sim import Fault, simulator
from tests.engine.sim.conftest import ASK, CHAT, STREAM, client_of

pytestmark = pytest.mark.anyio

SLOW = {**STREAM, "ignore_eos": True, "max_tokens": 10_000}


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def streaming(client: httpx2.AsyncClient, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
    async with client.stream("POST", CHAT, json=body) as answer:
        assert answer.status_code == 200
        yield answer.aiter_raw()


async def figures(client: httpx2.AsyncClient) -> dict[str, float]:
    return gauges.read((await client.get("/metrics")).text)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_slot_at_once(stream: bool) -> None:
    async with simulator(itl_s=0.01) as sim, client_of(sim) as client:
        body = SLOW if stream else {key: value for key, value in SLOW.items() if not key.startswith("stream")}
        request = asyncio.create_task(client.post(CHAT, json=body))
        await until(lambda: sim.running == 1)
        assert (await figures(client))["running"] == 1
        request.cancel()
        await until(lambda: sim.running == 0)
        text = (await client.get("/metrics")).text
        assert 'finished_reason="abort"} 1.0' in text
        assert gauges.read(text)["running"] == 0
        assert (sim.started, sim.completed, sim.aborted) == (1, 0, 1)


async def test_more_than_the_slots_wait_their_turn_and_more_than_the_queue_get_503() -> None:
    async with simulator(itl_s=0.01, slots=2, queue=1) as sim, client_of(sim) as client:
        running = [asyncio.create_task(client.post(CHAT, json=SLOW)) for _ in range(2)]
        await until(lambda: sim.running == 2)
        waiting = asyncio.create_task(client.post(CHAT, json=ASK))
        await until(lambda: sim.waiting == 1)
        assert (await figures(client))["waiting"] == 1
        refused = await client.post(CHAT, json=STREAM)
        assert refused.status_code == 503
        assert "retry-after" not in refused.headers
        assert refused.json()["error"]["code"] == 503
        running[0].cancel()
        assert (await waiting).json()["choices"]
        running[1].cancel()
        await until(lambda: sim.running == 0)


async def test_one_that_leaves_the_queue_is_not_waited_for() -> None:
    async with simulator(itl_s=0.01, slots=1) as sim, client_of(sim) as client:
        first, second, third = (asyncio.create_task(client.post(CHAT, json=SLOW)) for _ in range(3))
        await until(lambda: sim.waiting == 2)
        second.cancel()
        await until(lambda: sim.waiting == 1)
        first.cancel()
        await until(lambda: (sim.waiting, sim.running, sim.started) == (0, 1, 2))
        third.cancel()
        await until(lambda: sim.running == 0)


async def test_a_full_queue_says_when_to_come_back_if_it_is_told_to() -> None:
    async with simulator(Fault("stall"), slots=1, queue=0, retry_after_s=9) as sim, client_of(sim) as client:
        async with streaming(client, SLOW):
            await until(lambda: sim.running == 1)
            refused = await client.post(CHAT, json=ASK)
    assert refused.headers["retry-after"] == "9"


async def test_many_that_wait_all_get_their_turn() -> None:
    async with simulator(slots=1) as sim, client_of(sim) as client:
        answers = await asyncio.gather(*(client.post(CHAT, json=ASK) for _ in range(60)))
    assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {sim.expected(ASK).text}
    assert sim.completed == 60


async def test_the_head_of_a_stream_comes_before_its_slot() -> None:
    async with simulator(Fault("stall", times=1), slots=1) as sim, client_of(sim) as client:
        async with streaming(client, SLOW), streaming(client, SLOW):
            await until(lambda: (sim.running, sim.waiting) == (1, 1))


async def seconds(answer: Awaitable[Any]) -> float:
    begun_s = time.monotonic()
    await answer
    return time.monotonic() - begun_s


@pytest.mark.parametrize("body", [ASK, STREAM])
async def test_an_answer_takes_the_time_it_was_told(body: dict[str, Any]) -> None:
    async with simulator(ttft_s=0.1, itl_s=0.02) as sim, client_of(sim) as client:
        limited = {**body, "max_tokens": 11, "ignore_eos": True}
        assert await seconds(client.post(CHAT, json=limited)) > 0.1 + 10 * 0.02 - 0.01


async def test_seconds_may_be_whole_numbers() -> None:
    async with simulator(ttft_s=1) as sim, client_of(sim) as client:
        assert await seconds(client.post(CHAT, json=ASK)) > 0.99


async def test_a_cached_prompt_costs_no_time_to_read() -> None:
    ask = {"model": "sim", "max_tokens": 1, "messages": [{"role": "user", "content": "river " * 400}]}
    async with simulator(prefill_tokens_per_s=500) as sim, client_of(sim) as client:
        first_s = await seconds(client.post(CHAT, json=ask))
        second_s = await seconds(client.post(CHAT, json=ask))
        tokens = sim.expected(ask).prompt_tokens
        assert first_s > 0.79 > second_s
        answer = (await client.post(CHAT, json=ask)).json()
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == (tokens - 1) // 16 * 16
        read = await figures(client)
        assert read["prompt_tokens"] == 3 * tokens
        assert read["prefix_cache_hits"] == 2 * ((tokens - 1) // 16 * 16)


async def test_the_next_turn_of_a_conversation_finds_the_last_in_the_cache() -> None:
    async with simulator() as sim, client_of(sim) as client:
        said = (await client.post(CHAT, json=ASK)).json()
        turns = [*ASK["messages"], said["choices"][0]["message"], {"role": "user", "content": "And then?"}]
        usage = (await client.post(CHAT, json={"messages": turns})).json()["usage"]
        before = said["usage"]["prompt_tokens"] + said["usage"]["completion_tokens"] - 1  # less the end
    assert usage["prompt_tokens_details"]["cached_tokens"] == before // 16 * 16 > 0


async def test_what_was_not_used_for_longest_is_forgotten() -> None:
    asks = [{"messages": [{"role": "user", "content": f"{n} " + "river " * 64}], "max_tokens": 1} for n in range(3)]
    async with simulator(cache_blocks=10) as sim, client_of(sim) as client:
        for ask in (*asks, asks[0]):
            usage = (await client.post(CHAT, json=ask)).json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == 0
        assert len(sim.core.cache.blocks) == 10


async def test_the_figures_are_those_of_what_was_done() -> None:
    async with simulator() as sim, client_of(sim) as client:
        for body in (ASK, {**ASK, "max_tokens": 3}, {**STREAM, "n": 2}):
            assert (await client.post(CHAT, json=body)).status_code == 200
        text = (await client.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    reasons = {sample.labels["finished_reason"]: sample.value for sample in families["vllm:request_success"].samples}
    assert reasons == {"stop": 3, "length": 1, "abort": 0, "error": 0}
    ttft = {sample.name: sample.value for sample in families["vllm:time_to_first_token_seconds"].samples}
    assert ttft["vllm:time_to_first_token_seconds_count"] == 3
    whole = sim.expected(ASK)
    assert gauges.read(text) == {
        "running": 0,
        "waiting": 0,
        "kv_cache_used": 0,
        "preemptions": 0,
        "prompt_tokens": 3 * whole.prompt_tokens,
        "generation_tokens": whole.completion_tokens * 2
        + 3
        + sim.expected({**ASK, "n": 2}, choice=1).completion_tokens,
        "prefix_cache_hits": 0,
        "finished": 4,
    }


async def test_an_answer_that_is_held_back_shows_its_progress() -> None:
    async with simulator(itl_s=0.01) as sim, client_of(sim) as client:
        body = {**ASK, "ignore_eos": True, "max_tokens": 5000}
        request = asyncio.create_task(client.post(CHAT, json=body))
        await until(lambda: sim.running == 1)
        before = (await figures(client))["generation_tokens"]
        await asyncio.sleep(0.1)
        now = await figures(client)
        assert before < now["generation_tokens"] < 5000
        assert now["kv_cache_used"] > 0
        request.cancel()


async def test_a_reader_that_is_slow_is_waited_for() -> None:
    async with simulator() as sim:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(sim.url.rpartition(":")[2]), limit=1024)
        raw = httpx2.Request("POST", sim.url, json={**SLOW, "max_tokens": 30_000}).content
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(raw), raw))
        await until(lambda: any(connection.paused for connection in sim.open))
        assert sim.running == 1
        while not (await reader.read(2**16)).endswith(b"0\r\n\r\n"):
            pass
        writer.close()
        assert sim.completed == 1


async def test_the_cache_is_shared_by_those_with_the_same_salt_alone() -> None:
    long = {**ASK, "messages": [{"role": "user", "content": "one two three " * 30}]}
    async with simulator() as sim, client_of(sim) as client:
        cached = []
        for salt in (None, "ours", "ours", "theirs", None):
            body = long if salt is None else {**long, "cache_salt": salt}
            usage = (await client.post(CHAT, json=body)).json()["usage"]
            cached.append((usage["prompt_tokens_details"] or {}).get("cached_tokens", 0))
        refused = await client.post(CHAT, json={**long, "cache_salt": "a/b"})
    assert [bool(tokens) for tokens in cached] == [False, False, True, False, True]
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cache_salt")
