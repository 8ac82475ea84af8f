"""Admissions as several gateways have them, over one Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import redis
import sqlalchemy as sa

from penstock.callers import LOCAL, Caller
from penstock.errors import PenstockError
from penstock.store import Store, opened
from penstock.tables import usage
from serving.admission import Admission, Ticket
from serving.estimates import Estimate
from serving.shared_limits import SharedLimits
from tests.redis_server import RedisServer
from tests.serving.test_admission import SOME, Clock, config


def empty_at(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()


class Gateway:
    """An admission as one gateway has it. With a clock, Redis goes by it too."""

    def __init__(
        self,
        server: RedisServer,
        clock: Clock | None = None,
        lost: Literal["open", "closed"] = "open",
        store: Store | None = None,
        **model: Any,
    ) -> None:
        self.shared = SharedLimits(server.url, lost, clock.wall if clock else None)
        clocks: dict[str, Any] = {"steady": clock.steady, "wall": clock.wall} if clock else {}
        self.of = Admission(config(**model), self.shared, **clocks)
        self.of.store = store

    async def enter(self, caller: Caller = LOCAL, tokens: Estimate = SOME) -> Ticket:
        return await self.of.enter(caller, "m", tokens)

    async def enters(self, caller: Caller = LOCAL, tokens: Estimate = SOME) -> Ticket | None:
        try:
            return await self.enter(caller, tokens)
        except PenstockError:
            return None

    async def written(self) -> None:
        """Once Redis knows what has been settled."""
        while self.shared._talking:
            await asyncio.sleep(0.001)

    def dies(self) -> None:
        """As after kill -9: nothing is settled or renewed any more."""
        self.of.live.clear()
        self.shared._health.is_up = False
        self.shared._unsettled.clear()


@asynccontextmanager
async def gateways(*all: Gateway) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for one in all:
            await stack.enter_async_context(one.of)
        yield


@asynccontextmanager
async def three(server: RedisServer, clock: Clock | None = None, **model: Any) -> AsyncIterator[list[Gateway]]:
    all = [Gateway(server, clock, **model) for _ in range(3)]
    async with gateways(*all):
        yield all


@asynccontextmanager
async def used_before(folder: Path, **days: int) -> AsyncIterator[Store]:
    async with opened(f"sqlite:///{folder}/p.db") as store:
        counts = dict.fromkeys(("requests", "cached_tokens", "completion_tokens", "cut", "abandoned", "estimated"), 0)
        async with store.begin() as connection:
            for day, tokens in days.items():
                row = {"key_id": "k", "tenant": "k", "name": "k", "model": "m", "day": day.replace("_", "-")[1:]}
                await connection.execute(sa.insert(usage).values(**row, **counts | {"prompt_tokens": tokens}))
        yield store


def server_is_clean(server: RedisServer, caller: Caller) -> None:
    """No number of what is under way or counted has gone below zero."""
    with redis.Redis.from_url(server.url) as client:
        for value in client.hgetall(f"penstock:key:{{{caller.id}}}").values():
            assert int(value) >= 0
