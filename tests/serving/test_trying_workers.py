"""Canaries with several processes: the parent makes their versions ready, the workers split, count and judge."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from penstock.config import Config
from penstock.references import Reference
from penstock.tables import canary_figures
from registry.canaries import Canary, Rules, last, start
from registry.canary_figures import read
from tests.conftest import arguments, children
from tests.reliability.client import Caller
from tests.reliability.conftest import until
from tests.serving.moved import ASK, VERSION, Registry, tree
from tests.serving.test_moving_workers import Gateway, known, with_workers

__all__ = ["known"]
pytestmark = pytest.mark.anyio

RULES = Rules(least_requests=60, least_s=0, errors_margin=0.15, refusals_margin=0.15, latency_ratio=4, length_ratio=4)


class Clients:
    """Forty conversations, again and again. `cut` are those that lost their connection to a worker that was killed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.cut = 0
        self.seen: set[str] = set()

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        over = asyncio.Event()

        async def call(first: int) -> None:
            number = first
            while not over.is_set():
                number = (number + 8) % 40
                try:
                    await self._ask(number)
                except (OSError, asyncio.IncompleteReadError):
                    self.cut += 1

        async with asyncio.TaskGroup() as tasks:
            for first in range(8):
                tasks.create_task(call(first))
            yield
            over.set()

    async def _ask(self, number: int) -> None:
        body = ASK | {"messages": [{"role": "user", "content": f"Number {number}"}], "stream": True}
        async with Caller(self.url) as caller:
            said = await caller.ask(body)
        assert (said.status, said.error, said.done) == (200, None, True), said.body
        self.seen.add(said.headers[VERSION])


async def outcome(known: Registry) -> Canary:
    async with asyncio.timeout(30):
        while (now := await last(known.store, "demo", "production")).runs:
            await asyncio.sleep(0.05)
    return now


async def begun(known: Registry, version: int) -> Canary:
    return await start(known.store, "production", Reference("demo", version), 50, "me", RULES)


async def settled(here: Gateway, name: str) -> None:
    """Its replica alone is left."""
    await until(lambda: [replica.name for replica in here.engines.living] == [name], 20)


async def test_one_version_goes_back_and_another_on_though_a_worker_is_killed_in_the_midst(
    known: Registry, tmp_path: Path
) -> None:
    await known.whole(itl_s=0.02)
    await known.whole()
    async with with_workers(known, Config(**tree(tmp_path, gateway={"workers": 2}))) as here:
        clients = Clients(here.url)
        async with clients.load():
            await begun(known, 2)
            assert (await outcome(known)).outcome == "back"
            await settled(here, "base-0")
        assert (clients.cut, clients.seen) == (0, {"demo@1", "demo@2"})
        clients.seen.clear()
        async with clients.load():
            canary = await begun(known, 3)
            async with asyncio.timeout(20):
                while (await read(known.store, canary.id)).canary.requests == 0:
                    await asyncio.sleep(0.02)
            victim = next(pid for pid in children(os.getpid()) if "serving.worker" in arguments(pid))
            os.kill(victim, signal.SIGKILL)
            assert (await outcome(known)).outcome == "on"
            await here.until_all("m", "demo@3")
            await settled(here, "base-1")
        assert clients.seen == {"demo@1", "demo@3"}
        both = await read(known.store, canary.id)
        assert both.canary.errors == both.stable.errors == 0
        async with known.store.read() as connection:
            query = sa.select(sa.func.count(sa.distinct(canary_figures.c.gateway)))
            processes = (await connection.execute(query.where(canary_figures.c.canary == canary.id))).scalar()
        assert processes in (2, 3)  # the killed one's figures count; the one after it may have come too late
