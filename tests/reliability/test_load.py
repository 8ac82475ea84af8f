"""More than the engines can do, answers without measure, clients that read slowly."""

import asyncio
import socket
from typing import Any

import pytest

from engine.sim import Fault, simulator
from tests.reliability.client import CHAT, Caller, Said
from tests.reliability.conftest import ASK, STREAM, Behind, about, until

pytestmark = pytest.mark.anyio

EVENTS = 60_000


async def test_what_is_too_much_is_shed_with_a_time_to_come_back(before: Behind) -> None:
    async with simulator(slots=20, queue=20, ttft_s=0.3) as first, simulator(slots=20, queue=20, ttft_s=0.3) as second:
        async with before(first, second, routing={"affinity": "off"}) as gateway:
            answers = await gateway.many(400, ASK)
            served = [said for said in answers if said.status == 200]
            shed = [said for said in answers if said.status != 200]
            assert {said.status for said in shed} <= {429, 503}
            assert all(int(said.headers["retry-after"]) >= 1 for said in shed)
            assert all(said.error for said in shed)
            assert len(served) >= 80  # as many as there was room for
            assert first.completed + second.completed == len(served)
            await asyncio.sleep(1.1)  # the longest that a breaker may be open by now
            assert all(said.status == 200 for said in await gateway.many(20, ASK))


async def test_a_flood_to_a_slow_reader_holds_the_engine_up_and_is_whole_in_the_end(before: Behind) -> None:
    async with simulator(Fault("flood", after=2, events=EVENTS)) as sim, before(sim) as gateway:
        async with Caller(gateway.url) as caller:
            await caller.send(asking(STREAM))
            await caller.head()
            await asyncio.sleep(0.5)
            assert sim.running == 1  # it waits: what it could not write nobody holds
            said = await read_slowly(caller)
            await until(lambda: sim.completed == 1)
    assert said.done
    assert said.text == flooded(sim.expected(STREAM).tokens)


def flooded(tokens: Any) -> str:
    return "".join(tokens[:2]) + " flood" * EVENTS + "".join(tokens[2:])


def asking(body: dict[str, Any]) -> bytes:
    ...
