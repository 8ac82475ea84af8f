"""Whatever goes wrong before an answer has begun is mended elsewhere, or is a clean error."""

import asyncio
import time
from typing import Any

import pytest

from engine.sim import Fault, Simulator, simulator
from tests.reliability.client import Said
from tests.reliability.conftest import ASK, STREAM, Behind, about, until
from tests.upstream import swallowing

pytestmark = pytest.mark.anyio

NO_ANSWER = ["refuse", "close_before_headers", "reset", "garbage", "http09"]
PATIENT: dict[str, Any] = {"routing": {"affinity": "off", "breaker_failures": 1000}}
NO_GOOD_BODY = [
    Fault("truncated"),
    Fault("nan"),
    Fault("html"),
    Fault("empty"),
    Fault("wrong_length", by=10),
    Fault("wrong_length", by=-10),
    Fault("te_and_cl"),
    Fault("huge_headers", size_kb=200),
]
NO_GOOD_STREAM = [
    Fault("html"),
    Fault("empty"),
    Fault("error_first"),
    Fault("cut", after=0),
    Fault("reset_after", after=0),
    Fault("half_event", after=0),
    Fault("bad_json", after=0),
    Fault("bad_utf8", after=0),
    Fault("huge_headers", size_kb=200),
]


def asked(sim: Simulator) -> int:
    """How many generations it was asked for."""
    return sum(request.method == "POST" for request in sim.requests)


def is_whole(said: Said, body: dict[str, Any], sim: Simulator) -> bool:
    """Whether it is all of what the engine has to say to this body."""
    wanted = sim.expected(body)
    if not body.get("stream"):
        (choice,) = said.json["choices"]
        return said.status == 200 and choice["message"]["content"] == wanted.text
    return said.done and (said.text, said.finish[0]) == (wanted.text, wanted.finish_reason)


@pytest.mark.parametrize("count", [4, 100])
async def test_streams_that_hang_before_their_heads_are_had_elsewhere(before: Behind, count: int) -> None:
    async with simulator(Fault("hang")) as hung, simulator(itl_s=0.001) as well:
        async with before(hung, well, first_byte_timeout_s=0.3, routing={"affinity": "off"}) as gateway:
            answers = await gateway.many(count, STREAM)
            assert asked(hung) >= 2
    assert all(is_whole(said, about(number, STREAM), well) for number, said in enumerate(answers))


async def test_what_waits_at_an_engine_that_is_killed_is_had_elsewhere(before: Behind) -> None:
    async with simulator(ttft_s=0.3) as killed, simulator(ttft_s=0.3) as well:
        async with before(killed, well, routing={"affinity": "off"}) as gateway:
            asking = asyncio.create_task(gateway.many(100, ASK))
            await until(lambda: killed.running + well.running == 100)
            await killed.listener.close()
            answers = await asking
    assert all(is_whole(said, about(number, ASK), well) for number, said in enumerate(answers))


@pytest.mark.parametrize("body", [ASK, STREAM], ids=["whole", "stream"])
async def test_what_is_no_answer_is_asked_for_elsewhere(before: Behind, body: dict[str, Any]) -> None:
    async with simulator() as bad, simulator() as well:
        async with before(bad, well, **PATIENT) as gateway:
            for kind in NO_ANSWER:
                await strike(bad, Fault(kind))
                for number in range(4):
                    assert is_whole(await gateway.ask(about(number, body)), about(number, body), well), kind


@pytest.mark.parametrize("body", [ASK, STREAM], ids=["whole", "stream"])
async def test_without_any_answer_the_caller_gets_openais_error(before: Behind, body: dict[str, Any]) -> None:
    async with simulator() as first, simulator() as second:
        async with before(first, second, engine_wait_s=0.2, **PATIENT) as gateway:
            for kind in NO_ANSWER:
                await strike(first, Fault(kind))
                await strike(second, Fault(kind))
                said = await gateway.ask(body)
                assert said.error
                assert (said.status, said.error["code"]) in ((502, "engine_error"), (503, "engine_unavailable"))
                assert said.error["type"] == "server_error"
                assert said.status == 502 or int(said.headers["retry-after"]) > 0


async def strike(sim: Simulator, fault: Fault) -> None:
    """From now on this alone is wrong with it; a connection that was kept would not be refused."""
    await sim.listener.close()
    sim.faults[:] = [fault]
    await sim.listener.open()


async def test_a_body_that_is_no_answer_is_never_passed_on_as_one(before: Behind) -> None:
    async with simulator(keep_alive_s=0.1) as bad, simulator() as well:
        async with before(bad, **PATIENT) as alone, before(bad, well, **PATIENT) as gateway:
            for fault in NO_GOOD_BODY:
                bad.faults[:] = [fault]
                said = await alone.ask(ASK)
                assert (said.status, said.error and said.error["code"]) == (502, "engine_error"), fault
                for number in range(4):
                    assert is_whole(await gateway.ask(about(number, ASK)), about(number, ASK), well), fault


async def test_a_stream_that_is_no_good_from_the_start_is_had_elsewhere(before: Behind) -> None:
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}]}  # so that it is not continued
    async with simulator() as bad, simulator() as well:
        async with before(bad, **PATIENT) as alone, before(bad, well, **PATIENT) as gateway:
            for fault in NO_GOOD_STREAM:
                bad.faults[:] = [fault]
                assert (await alone.ask(STREAM | tools)).status == 502, fault
                for number in range(4):
                    body = about(number, STREAM) | tools
                    assert is_whole(await gateway.ask(body), body, well), fault


async def test_engines_that_refuse_everything_are_not_asked_twice_as_often_for_it(before: Behind) -> None:
    async with simulator(Fault("status", status=503)) as first, simulator(Fault("status", status=503)) as second:
        async with before(first, second) as gateway:
            answers = await gateway.many(50, ASK)
            sent = asked(first) + asked(second)
            answers += await gateway.many(50, ASK)
            after = asked(first) + asked(second) - sent
    assert {said.status for said in answers} == {503}
    assert all(int(said.headers["retry-after"]) > 0 for said in answers)
    assert sent <= 60
    assert after <= 2  # the breakers are open: one request a replica, at most, looks whether they are well again


@pytest.mark.parametrize("body", [ASK, STREAM], ids=["whole", "stream"])
async def test_the_callers_deadline_ends_the_request_and_the_generation(before: Behind, body: dict[str, Any]) -> None:
    async with simulator(ttft_s=20) as slow:
        async with before(slow) as gateway:
            began = time.monotonic()
            said = await gateway.ask(body, headers={"x-request-timeout-s": "1"})
            took_s = time.monotonic() - began
            await until(lambda: not slow.running, within_s=1)
    assert (said.status, said.error and said.error["code"]) == (504, "deadline_exceeded")
    assert 1 <= took_s < 1.5
    assert slow.aborted == 1


async def test_the_callers_deadline_also_ends_a_stream_that_has_begun(before: Behind) -> None:
    async with simulator(itl_s=0.05, mean_tokens=1000) as slow, simulator(itl_s=0.05) as other:
        async with before(slow, other) as gateway:
            said = await gateway.ask(STREAM, headers={"x-request-timeout-s": "0.5"})
            await until(lambda: not slow.running + other.running, within_s=1)
    assert (said.status, said.done, said.error and said.error["code"]) == (200, False, "deadline_exceeded")


async def test_the_callers_deadline_also_ends_the_wait_for_an_engine(before: Behind) -> None:
    async with simulator() as sim, before(sim) as gateway:
        await sim.listener.close()
        began = time.monotonic()
        said = await gateway.ask(ASK, headers={"x-request-timeout-s": "0.5"})
        assert 0.5 <= time.monotonic() - began < 1
    assert (said.status, said.error and said.error["code"]) == (504, "deadline_exceeded")


async def test_health_that_flaps_each_second_costs_no_request(before: Behind) -> None:
    async with simulator(Fault("health_flaps", period_s=0.5)) as flapping, simulator() as well:
        async with before(flapping, well) as gateway:
            for number in range(20):
                assert is_whole(await gateway.ask(about(number, STREAM)), about(number, STREAM), well)
                await asyncio.sleep(0.1)


async def test_an_engine_that_only_says_it_is_well_gets_nothing_after_a_few_failures(before: Behind) -> None:
    async with simulator(Fault("health_lies", status=500)) as liar, simulator() as well:
        async with before(liar, well, routing={"affinity": "off", "breaker_open_s": 30}) as gateway:
            for number in range(20):
                assert is_whole(await gateway.ask(about(number, ASK)), about(number, ASK), well)
            assert await gateway.figure("penstock_breaker_open", engine="e", replica="0") == 1
    assert asked(liar) == 5


async def test_an_address_that_begins_to_swallow_packets_is_given_up_within_a_second(before: Behind) -> None:
    async with simulator() as lost, simulator() as well:
        async with before(lost, well, routing={"affinity": "off"}, probe={"interval_s": 60}) as gateway:
            await lost.listener.close()
            with swallowing(lost.listener.port):
                began = time.monotonic()
                answers = await gateway.many(4, STREAM)
                assert all(is_whole(said, about(number, STREAM), well) for number, said in enumerate(answers))
                assert 1 <= time.monotonic() - began < 2
                assert await gateway.figure("penstock_engine_ready", engine="e", replica="0") == 0
                began = time.monotonic()
                assert (await gateway.ask(STREAM)).done
                assert time.monotonic() - began < 0.5
