"""What the quiet tenant is timed by, and how that is told."""

import asyncio

import pytest

from benchmarks.client import Requests, Tally
from benchmarks.fairness import body, report
from benchmarks.load import Crowd
from engine.sim import simulator

pytestmark = pytest.mark.anyio


async def test_an_open_loop_asks_as_often_as_it_may_and_times_every_answer() -> None:
    tally = Tally(times=True)
    async with simulator(mean_tokens=4, itl_s=0.02) as sim:
        asked = Requests(sim.url.removeprefix("http://"), [body(even=False).encode()], stream=True)
        await Crowd(sim.url, asked, tally, 5).open_loop(100)
        async with asyncio.timeout(10):
            while tally.completed + tally.errors.total() < 5:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert (sim.started, tally.completed, len(tally.latency_s)) == (5, 5, 5)
        assert len({sim.expected(request.body).text for request in sim.requests}) > 1


def test_a_ratio_is_of_all_rounds_together() -> None:
    quick, slow = [[0.1] * 50] * 2, [[0.2] * 50, [0.3] * 50]
    (*_, row) = report({"a": {"alone": quick, "beside": slow}}).splitlines()
    assert row == "| a | 100 (100-100) | 250 (200-300) | 2.00 | 100 (100-100) | 250 (200-300) | 3.00 |"
