"""The replicas of one engine, and which of them takes the next request: the least busy that is ready."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from engine.replica import Replica
from penstock.errors import EngineUnavailable

RETRY_AFTER_S = 5


class Pool:
    def __init__(self, name: str, replicas: Sequence[Replica], wait_s: float) -> None:
        """`wait_s`: how long a request waits for a replica while none is ready."""
        self.name = name
        self.replicas = replicas
        self.wait_s = wait_s

    @property
    def ready(self) -> bool:
        return any(replica.ready.is_set() for replica in self.replicas)

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Replica]:
        """The replica for one request, counted as busy until the block ends. Raises EngineUnavailable."""
        if not self.ready:
            await self._until_ready_in_time()
        replica = min((r for r in self.replicas if r.ready.is_set()), key=lambda r: r.outstanding)
        replica.outstanding += 1
        try:
            yield replica
        finally:
            replica.outstanding -= 1

    async def until_ready(self) -> None:
        """Returns when any replica is."""
        waits = [asyncio.create_task(replica.ready.wait()) for replica in self.replicas]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _until_ready_in_time(self) -> None:
        try:
            async with asyncio.timeout(self.wait_s):
                while not self.ready:
                    await self.until_ready()
        except TimeoutError:
            raise EngineUnavailable(
                f"the engine {self.name} is not ready; try again in a few seconds", retry_after_s=RETRY_AFTER_S
            ) from None
