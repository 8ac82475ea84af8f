"""What a replica's engine says it has in its prefix cache, kept up to date for as long as the replica is there."""

import asyncio
import logging
from collections.abc import Sequence
from typing import NoReturn

from engine.cached import Cached
from engine.kv_events import Source, follow, sources
from engine.replica import Replica
from penstock.errors import EngineError

log = logging.getLogger(__name__)

LOOK_S = 5.0


class Ranks:
    """A replica's data-parallel ranks, each with a cache of its own: a prompt goes to one of them."""

    def __init__(self, caches: Sequence[Cached]) -> None:
        self.caches = caches

    def matched(self, tokens: Sequence[int], salt: str = "") -> int:
        return max((cached.matched(tokens, salt) for cached in self.caches), default=0)


async def keep_holdings(replica: Replica) -> NoReturn:
    """Sets `replica.cached` once the engine says where it publishes. Raises StartError where that cannot be read."""
    told = False
    while True:
        found = await published(replica) if replica.ready else []
        if found:
            log.info("%s: following its KV events", replica.name)
            await follow_all(replica, found)
        elif replica.ready and not told:
            told = True
            log.warning("%s publishes no KV events: start it with --kv-events-config", replica.name)
        await asyncio.sleep(LOOK_S)


async def published(replica: Replica) -> list[Source]:
    async def get(path: str) -> bytes:
        return (await replica.client.ask("GET", path, timeout_s=LOOK_S)).body

    try:
        return await sources(get, replica.client.host)
    except EngineError:
        return []


async def follow_all(replica: Replica, found: Sequence[Source]) -> None:
    caches = [Cached() for _ in found]
    replica.cached = Ranks(caches)
    async with asyncio.TaskGroup() as tasks:
        for source, cached in zip(found, caches, strict=True):
            tasks.create_task(follow(source.endpoint, cached, replay=source.replay, topic=source.topic))
