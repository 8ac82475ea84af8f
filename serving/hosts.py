"""Versions that move, in a gateway of one process: the one that answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

from engine.replica import Replica
from penstock.config import Config
from penstock.store import Store
from serving.engines import Engines
from serving.following import Following
from serving.moving import Moving
from serving.served import Hosts
from serving.stack import Stack
from serving.trying import Trying
from serving.versions import Versions

LOOK_S = 0.1


class Alone:
    """`Hosts` of one process, which `change` moves to another configuration."""

    def __init__(self, stack: Stack, engines: Engines, change: Callable[[Config], None]) -> None:
        self.stack = stack
        self.engines = engines
        self.change = change

    def move(self, versions: Versions) -> None:
        self.stack.move(self.engines.replicas, versions, self.engines.tried_replicas)

    def apply(self, config: Config, versions: Versions) -> None:
        self.stack.versions = versions
        self.change(config)

    async def left(self, names: Collection[str]) -> None:
        while self.stack.leaving() & set(names):
            await asyncio.sleep(LOOK_S)

    def elsewhere(self, engine: str) -> Sequence[Replica] | None:
        pool = self.stack.pools.get(engine)
        return pool.replicas if pool else None


@asynccontextmanager
async def followed(config: Config, store: Store, engines: Engines, hosts: Hosts) -> AsyncIterator[Moving]:
    """The registry's aliases, while the block runs."""
    moving = Moving(config, store, engines, hosts)
    trying = Trying(moving)
    moving.served.changed = trying.look_again
    following = Following(store, moving.moved, lambda: moving.served.refers, trying.look_again)
    beside = [asyncio.create_task(job) for job in (moving.run(), following.run(), trying.run())]
    try:
        yield moving
    finally:
        for task in beside:
            task.cancel()
        await asyncio.wait(beside)
