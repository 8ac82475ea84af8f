"""Streams are cut ten thousand times: each is whole in the end, or says that it is not. None ends short in silence."""

import asyncio
import logging
import random
from collections import Counter
from contextlib import AsyncExitStack
from itertools import count, product
from typing import Any

import pytest

from engine.sim import Fault, Simulator, simulator
from tests.reliability.client import CHAT, TEXT, Caller, Said
from tests.reliability.conftest import STREAM, WITH_USAGE, Behind, about, until

pytestmark = pytest.mark.anyio

CUT_STREAMS = 10_000
AT_ONCE = 100
SEED = 4
ITL_S = 0.0005  # so that events come one by one
# Each strikes so many of an engine's streams after 0, 2 and 5 tokens.
CUTS = ["cut", "reset_after", "half_event", "no_done", "no_finish", "bad_json", "error_event", "stall", "nan"]
SHARE = 0.03
STALL_S = 0.2
# What a request asks for beside text; some of it cannot be continued.
MORE: list[dict[str, Any]] = [
    {},
    {},
    {"max_tokens": 3},
    {"n": 2},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"temperature": 0, "seed": 1},
    {"logprobs": True},
]


def faults(seed: int, share: float) -> list[Fault]:
    return [
        Fault(kind, after=after, delay_s=2 * STALL_S, probability=share, seed=seed + number)
        for number, (kind, after) in enumerate(product(CUTS, (0, 2, 5)))
    ]


def request(number: int, dice: random.Random) -> tuple[str, dict[str, Any]]:
    more = dice.choice(MORE)
    if dice.random() < 0.2:
        text = {"prompt": f"River {number}", "max_tokens": 8, "n": more.get("n", 1)}
        return TEXT, {"model": "sim", "stream": True, "stream_options": {"include_usage": True}, **text}
    return CHAT, {**about(number, WITH_USAGE), **more}


def judged(said: Said, body: dict[str, Any], sim: Simulator) -> str:
    """How the stream ended, in a word; fails for one that is neither whole nor says so."""
    if said.status != 200:
        assert said.status in (502, 503, 504)
        assert said.error
        return f"status {said.status}"
    wanted = [sim.expected(body, choice=choice) for choice in range(body.get("n", 1))]
    if said.error:
        assert not said.done
        assert all(one.text.startswith(said.texts.get(choice, "")) for choice, one in enumerate(wanted))
        return "error event"
    assert said.done
    assert said.texts == {choice: one.text for choice, one in enumerate(wanted)}
    assert said.finish == {choice: one.finish_reason for choice, one in enumerate(wanted)}
    assert said.usage
    assert said.usage["completion_tokens"] == sum(one.completion_tokens for one in wanted)
    return "continued" if b"goes on" in said.body else "whole"


async def test_no_stream_ends_short_in_silence(before: Behind, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # of lines about it there are as many
    ends: Counter[str] = Counter()
    numbers = count()
    async with AsyncExitStack() as open:
        shares = [SHARE, SHARE, SHARE / 3]
        sims = [
            await open.enter_async_context(simulator(*faults(100 * number, share), mean_tokens=8, itl_s=ITL_S))
            for number, share in enumerate(shares)
        ]
        routing = {"affinity": "off", "breaker_failures": 50, "breaker_open_s": 0.02}
        gateway = await open.enter_async_context(before(*sims, stall_timeout_s=STALL_S, routing=routing))

        def cut() -> int:
            return sum(fault.struck for sim in sims for fault in sim.faults)

        async def ask(dice: random.Random) -> None:
            async with Caller(gateway.url) as caller:
                while cut() < CUT_STREAMS:
                    path, body = request(next(numbers), dice)
                    ends[judged(await caller.ask(body, path), body, sims[0])] += 1

        await asyncio.gather(*(ask(random.Random(SEED + number)) for number in range(AT_ONCE)))
    print(f"{cut()} cuts of {ends.total()} streams, which ended: {dict(ends)}")
    assert ends["continued"] > CUT_STREAMS / 20
    assert ends["error event"] > CUT_STREAMS / 20


OTHERS = ["hang", "status", "reset", "close_before_headers", "garbage", "slow_head", "split", "crlf", "multi_line"]


async def test_when_everything_fails_and_clients_leave_nothing_is_left_behind(
    before: Behind, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    numbers, dice = count(), random.Random(SEED)
    async with AsyncExitStack() as open:
        strange = [Fault(kind, delay_s=0.05, probability=0.02, seed=number) for number, kind in enumerate(OTHERS)]
        sims = [
            await open.enter_async_context(simulator(*faults(number, SHARE), *strange, mean_tokens=8, itl_s=ITL_S))
            for number in range(3)
        ]
        limits = {"first_byte_timeout_s": 0.2, "first_token_timeout_s": 1, "stall_timeout_s": STALL_S}
        routing = {"hedge_after_s": 0.005, "breaker_failures": 50, "breaker_open_s": 0.02}
        gateway = await open.enter_async_context(before(*sims, **limits, routing=routing))

        async def ask() -> None:
            async with Caller(gateway.url) as caller:
                while (number := next(numbers)) < 2000:
                    path, body = request(number, dice)
                    try:
                        async with asyncio.timeout(dice.choice((0.002, 0.01, 0.05, 10))):
                            judged(await caller.ask(body, path), body, sims[0])
                    except TimeoutError:
                        caller.leave()

        await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
        await until(lambda: not any(sim.running for sim in sims), within_s=3)
        assert await gateway.figure("penstock_requests_in_flight") == 1  # this one
        for sim in sims:
            sim.faults.clear()
        await asyncio.sleep(0.1)
        assert all(said.done for said in await gateway.many(20, STREAM))
