"""A stream that breaks after its first token is continued to the byte, or ends in one error event."""

import asyncio
from itertools import product
from typing import Any

import pytest

from engine.sim import Fault, simulator
from tests.reliability.client import CHAT, TEXT, ask
from tests.reliability.conftest import STREAM, WITH_USAGE, Behind, about

pytestmark = pytest.mark.anyio

AFTER = 5
BREAKS = ["cut", "reset_after", "half_event", "stall", "error_event", "bad_json", "bad_utf8", "nan", "no_finish"]
QUICK: dict[str, Any] = {"stall_timeout_s": 0.3, "routing": {"affinity": "off", "breaker_failures": 1000}}
FUNCTION = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
# Bodies whose rest depends on more than the text so far.
NOT_EXACT: dict[str, dict[str, Any]] = {
    "tools": {"tools": [FUNCTION]},
    "schema": {"response_format": SCHEMA},
    "logprobs": {"logprobs": True},
    "two choices": {"n": 2},
    "presence penalty": {"presence_penalty": 0.5},
    "frequency penalty": {"frequency_penalty": 0.5},
    "seed": {"seed": 7, "temperature": 0.5},
    "another field": {"min_tokens": 2},
}


async def test_a_stream_that_breaks_is_continued_to_the_byte(before: Behind) -> None:
    async with simulator(itl_s=0.005) as bad, simulator() as well:
        async with before(bad, well, **QUICK) as gateway:
            for number, kind in enumerate(BREAKS):
                bad.faults[:] = [fault := Fault(kind, after=AFTER)]
                bodies = [about(4 * number + more, WITH_USAGE) for more in range(4)]
                answers = await asyncio.gather(*map(gateway.ask, bodies))
                assert fault.struck, kind
                for said, body in zip(answers, bodies, strict=True):
                    wanted = well.expected(body)
                    assert (said.text, said.finish, said.done) == (wanted.text, {0: wanted.finish_reason}, True), kind
                    assert said.usage
                    assert said.usage["prompt_tokens"] == wanted.prompt_tokens
                    assert said.usage["completion_tokens"] == wanted.completion_tokens
                    assert said.usage["total_tokens"] == wanted.prompt_tokens + wanted.completion_tokens
                    assert len(said.ids) == 1
                    assert said.headers["x-penstock-continuable"] == "1"


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_wherever_it_is_cut_text_usage_and_limit_are_as_uncut(before: Behind, path: str) -> None:
    shape = STREAM if path == CHAT else {"model": "sim", "prompt": "The river", "stream": True}
    async with simulator() as first, simulator() as second:
        async with before(first, second, routing={"breaker_failures": 1000}) as gateway:
            for after in range(40):
                for limit in {1, after, after + 1, after + 2, 40} - {0}:
                    second.faults[:] = first.faults[:] = [Fault("cut", after=after, times=1)]
                    body = {**shape, "max_tokens": limit, "stream_options": {"include_usage": True}}
                    said, wanted = await gateway.ask(body, path), first.expected(body)
                    assert (said.text, said.finish, said.done) == (wanted.text, {0: wanted.finish_reason}, True)
                    assert said.usage
                    assert said.usage["prompt_tokens"] == wanted.prompt_tokens
                    assert said.usage["completion_tokens"] == wanted.completion_tokens <= limit
                    assert len(said.ids) == 1


async def test_what_continues_is_counted(before: Behind) -> None:
    async with simulator(Fault("cut", after=AFTER)) as bad, simulator() as well:
        async with before(bad, well, **QUICK) as gateway:
            count = await gateway.figure("penstock_streams_continued_total", model="sim")
            for number in range(4):
                assert (await gateway.ask(about(number, STREAM))).done
            assert await gateway.figure("penstock_streams_continued_total", model="sim") == count + bad.started > count


async def test_a_stream_that_breaks_again_and_again_is_continued_each_time(before: Behind) -> None:
    async with simulator() as first, simulator() as second, simulator() as third:
        for sim in (first, second, third):
            sim.faults.append(Fault("cut", after=AFTER, times=1))
        async with before(first, second, third) as gateway:
            said, wanted = await gateway.ask(WITH_USAGE), first.expected(WITH_USAGE)
    assert (said.text, said.done) == (wanted.text, True)
    assert said.usage
    assert said.usage["completion_tokens"] == wanted.completion_tokens


async def test_what_was_cached_of_the_rest_is_told_of_the_prompt_alone(before: Behind) -> None:
    """The replica that goes on finds its prompt in the cache, and the text so far, which is no part of the caller's."""
    body = WITH_USAGE | {"max_tokens": 40}
    async with simulator(Fault("cut", after=36), mean_tokens=100) as bad, simulator(mean_tokens=100) as other:
        assert (await ask(other.url, body)).done
        async with before(bad, other) as gateway:
            said = await gateway.ask(body)
    assert bad.started == 1
    assert said.usage
    assert said.usage["completion_tokens"] == 40
    assert said.usage["prompt_tokens_details"]["cached_tokens"] == said.usage["prompt_tokens"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [*product(["/tokenize"], ["status", "hang"]), *product([CHAT], ["status", "hang", "reset", "cut", "bad_json"])],
)
async def test_what_one_replica_cannot_continue_another_does(before: Behind, path: str, kind: str) -> None:
    cuts, cannot = Fault("cut", after=AFTER), Fault(kind, path=path, after=1)
    async with simulator(cuts) as first, simulator(cannot, itl_s=0.005) as second, simulator() as third:
        async with before(first, second, third, first_byte_timeout_s=0.3, **QUICK) as gateway:
            said, wanted = await gateway.ask(WITH_USAGE), first.expected(WITH_USAGE)
    assert (said.text, said.done) == (wanted.text, True)
    assert said.usage
    assert said.usage["completion_tokens"] == wanted.completion_tokens
    assert (first.started, third.started) == (1, 1)
    assert cannot.struck


async def test_what_cannot_be_continued_exactly_ends_in_an_error_event(before: Behind) -> None:
    bodies = [STREAM | more for more in NOT_EXACT.values()]
    async with simulator(itl_s=0.01) as bad, simulator(itl_s=0.01) as other:
        async with before(bad, other, **QUICK) as gateway:
            for kind in BREAKS:
                bad.faults[:] = other.faults[:] = [fault := Fault(kind, after=AFTER)]
                answers = await asyncio.gather(*map(gateway.ask, bodies))
                assert fault.struck == len(bodies), kind
                for said, body in zip(answers, bodies, strict=True):
                    assert said.status == 200, kind
                    assert said.error, kind
                    assert not said.done, kind
                    assert "x-penstock-continuable" not in said.headers
                    assert said.text, kind
                    assert bad.expected(body).text.startswith(said.text), kind


@pytest.mark.parametrize("kind", ["no_done", "after_done", "null_delta"])
async def test_what_only_the_form_lacks_is_repaired(before: Behind, kind: str) -> None:
    async with simulator(Fault(kind, after=AFTER)) as bad:
        async with before(bad) as gateway:
            for more in ({}, {"n": 2}, {"tools": [FUNCTION]}):
                body = WITH_USAGE | more
                said = await gateway.ask(body)
                assert said.done
                for choice in range(body.get("n", 1)):
                    wanted = bad.expected(body, choice=choice)
                    assert (said.texts[choice], said.finish[choice]) == (wanted.text, wanted.finish_reason)
                assert said.usage
    assert bad.started == 3


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_streams_of_named_events_end_in_an_error_event(before: Behind, path: str) -> None:
    asked = {"input": "Where?"} if path == "/v1/responses" else {"messages": STREAM["messages"], "max_tokens": 20}
    async with simulator(itl_s=0.01) as bad:
        async with before(bad, **QUICK) as gateway:
            for kind in BREAKS:
                if kind == "no_finish":  # of OpenAI's chunks alone
                    continue
                bad.faults[:] = [Fault(kind, after=AFTER)]
                answer = await gateway.client.post(path, json={"model": "sim", "stream": True, **asked})
                *said, last = answer.text.removesuffix("\n\n").split("\n\n")
                assert last.startswith("event: error\ndata: {")
                assert "delta" in said[-1]
                assert not any(end in answer.text for end in ("message_stop", "response.completed", "[DONE]"))


async def test_a_killed_engines_streams_all_go_on(before: Behind) -> None:
    async with simulator(itl_s=0.02) as first, simulator(itl_s=0.02) as second:
        async with before(first, second) as gateway:
            asking = asyncio.create_task(gateway.many(8, WITH_USAGE))
            async with asyncio.timeout(5):
                while first.running + second.running < 8:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            await first.listener.close()
            answers = await asking
            for number, said in enumerate(answers):
                wanted = second.expected(about(number, WITH_USAGE))
                assert (said.text, said.done) == (wanted.text, True)
            after = await gateway.many(8, STREAM)
            assert all(said.done for said in after)
            await first.listener.open()
            started = first.started
            async with asyncio.timeout(6):
                while first.started == started:
                    assert all(said.done for said in await gateway.many(4, STREAM))


async def test_an_engine_that_cuts_every_stream_gets_nothing_after_a_few(before: Behind) -> None:
    async with simulator(Fault("cut", after=AFTER)) as bad, simulator() as well:
        async with before(bad, well, routing={"affinity": "off", "breaker_open_s": 30}) as gateway:
            for number in range(20):
                assert (await gateway.ask(about(number, STREAM))).done
            assert await gateway.figure("penstock_breaker_open", engine="e", replica="0") == 1
    assert bad.started == 5
