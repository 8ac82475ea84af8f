"""More than the engines can do, answers without measure, clients that read slowly."""

import asyncio
import json

import pytest

from engine.sim import Fault, simulator
from tests.reliability.client import Caller, Said, post
from tests.reliability.conftest import ASK, STREAM, WITH_USAGE, Behind, about, until
from tests.upstream import answers, upstream

pytestmark = pytest.mark.anyio

EVENTS = 60_000


async def test_what_is_too_much_is_shed_with_a_time_to_come_back(before: Behind) -> None:
    for _ in range(3):  # on a machine that stands still in the midst, a breaker opens before there is no room
        if await served_of_too_many(before) >= 80:  # as many as there was room for
            return
    pytest.fail("three floods, and never was all room used")


async def served_of_too_many(before: Behind) -> int:
    async with simulator(slots=20, queue=20, ttft_s=0.3) as first, simulator(slots=20, queue=20, ttft_s=0.3) as second:
        async with before(first, second, routing={"affinity": "off"}) as gateway:
            answers = await gateway.many(400, ASK)
            served = [said for said in answers if said.status == 200]
            shed = [said for said in answers if said.status != 200]
            assert {said.status for said in shed} <= {429, 503}
            assert all(int(said.headers["retry-after"]) >= 1 for said in shed)
            assert all(said.error for said in shed)
            assert first.completed + second.completed == len(served)
            await asyncio.sleep(1.1)  # the longest that a breaker may be open by now
            assert all(said.status == 200 for said in await gateway.many(20, ASK))
    return len(served)


async def test_a_flood_to_a_slow_reader_holds_the_engine_up_and_is_whole_in_the_end(before: Behind) -> None:
    async with simulator(Fault("flood", after=2, events=EVENTS)) as sim, before(sim) as gateway:
        async with Caller(gateway.url) as caller:
            await caller.send(post(STREAM))
            await asyncio.sleep(1)
            assert sim.running == 1  # what cannot be written is not read either
            said = await caller.answer()
        tokens = sim.expected(STREAM).tokens
        assert said.done
        assert said.text == "".join(tokens[:2]) + " flood" * EVENTS + "".join(tokens[2:])
        assert (await gateway.ask(about(1, STREAM))).done


async def test_who_reads_nothing_at_all_loses_the_place(before: Behind) -> None:
    async with simulator(Fault("flood", events=EVENTS)) as sim, before(sim, stall_timeout_s=0.5) as gateway:
        async with Caller(gateway.url) as caller:
            await caller.send(post(STREAM))
            await until(lambda: sim.running == 1)
            await until(lambda: sim.aborted == 1, within_s=30)


async def test_who_reads_slowly_gets_it_all(before: Behind) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "a" * 2**24}, "finish_reason": "stop"}
    body = json.dumps({"id": "x", "choices": [choice]}).encode()
    async with upstream(answers(200, body)) as engine, before(engine.url, stall_timeout_s=0.2) as gateway:
        async with Caller(gateway.url, buffer_bytes=2**14) as caller:
            await caller.send(post({**ASK, "model": "sim"}))
            assert await caller.slowly(2**19, 0.03) == body


async def test_an_engines_own_word_on_when_to_come_back_passes(before: Behind) -> None:
    async with simulator(slots=1, queue=0, retry_after_s=7, ttft_s=0.5) as sim, before(sim) as gateway:
        answers = await gateway.many(3, STREAM)
    assert sorted(said.status for said in answers) == [200, 503, 503]
    assert {said.headers["retry-after"] for said in answers if said.status == 503} == {"7"}


async def test_lies_about_usage_pass_as_they_are(before: Behind) -> None:
    """Nothing is billed yet; the counts that will be are Penstock's own."""
    async with simulator() as sim, before(sim) as gateway:
        for value in (-5, 10**9):
            sim.faults[:] = [Fault("usage_lies", value=value)]
            for body in (ASK, WITH_USAGE):
                said = await gateway.ask(body)
                usage = said.usage if body.get("stream") else said.json["usage"]
                assert said.status == 200
                assert usage
                assert usage["completion_tokens"] == value
                assert text_of(said) == sim.expected(body).text


def text_of(said: Said) -> str:
    return said.text or str(said.json["choices"][0]["message"]["content"])
