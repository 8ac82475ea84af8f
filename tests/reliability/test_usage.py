"""Usage adds up: thousands of mixed requests, the simulators' own count beside the ledger's."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.sim import Simulator, simulator
from penstock.store import opened
from penstock.used import used
from serving.ledger import Ledger
from tests.reliability.client import Caller, ask, post
from tests.reliability.conftest import about
from tests.reliability.test_processes import serving, simulated
from tests.serving.conftest import run_gateway

pytestmark = pytest.mark.anyio

ASK: dict[str, Any] = {"model": "sim", "messages": [{"role": "user", "content": "How much?"}], "max_tokens": 12}
STREAM = ASK | {"stream": True}
TOLD = STREAM | {"stream_options": {"include_usage": True}}
REQUESTS = 5000
AT_ONCE = 64


@asynccontextmanager
async def gateway(ledger: Ledger, *sims: Simulator) -> AsyncIterator[str]:
    tree: dict[str, Any] = {
        "engines": {"e": {"urls": [sim.url for sim in sims]}},
        "models": {"sim": {"engine": "e"}},
    }
    writing = asyncio.create_task(ledger.run())
    async with run_gateway(hot=True, ledger=ledger, **tree) as client:
        yield str(client.base_url)
        await asyncio.sleep(0.2)  # the engines have seen that who has left has left
    writing.cancel()
    await asyncio.wait([writing])


async def test_five_thousand_requests_of_every_kind_cost_what_the_engines_have_counted(database: str) -> None:
    dice = random.Random(1)
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(url: str, number: int) -> None:
        body = about(number, dice.choice((ASK, STREAM, TOLD)))
        async with turn:
            if number % 10 == 0:
                await left(url, body | {"stream": True})
            else:
                await ask(url, body)

    async with opened(database) as store, simulator() as first, simulator() as second:
        async with gateway(Ledger(store), first, second) as url:
            await asyncio.gather(*(one(url, number) for number in range(REQUESTS)))
        (row,) = await used(store, [])
    sims = (first, second)
    assert row["requests"] == REQUESTS
    assert row["prompt_tokens"] == sum(sim.core.figures.prompt_tokens for sim in sims)
    assert row["completion_tokens"] == sum(sim.core.figures.generation_tokens for sim in sims)
    assert row["estimated"] == 0


async def left(url: str, body: dict[str, Any]) -> None:
    """A client that goes as soon as its answer begins."""
    async with Caller(url) as caller:
        await caller.send(post(body))
        await caller.head()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
async def test_what_was_used_outlasts_the_gateway(tmp_path: Path, number: signal.Signals) -> None:
    answered: list[float] = []
    with simulated() as (_, url):
        async with serving([url], tmp_path) as served:
            until = time.monotonic() + 2.5
            while time.monotonic() < until:
                await ask(served.url, about(len(answered), STREAM))
                answered.append(time.monotonic())
            served.process.send_signal(number)
            await asyncio.to_thread(served.process.wait)
            ended = time.monotonic()
            async with opened(f"sqlite:///{served.home}/penstock.db") as store:
                (row,) = await used(store, [])
    least = len(answered) if number == signal.SIGTERM else sum(at < ended - 1 for at in answered)
    assert 0 < least <= row["requests"] <= len(answered)
