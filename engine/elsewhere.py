"""The replicas of an engine that runs elsewhere: each watched, and found again where they come and go."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from engine import discovery
from engine.holdings import keep_holdings
from engine.pool import Pool
from engine.remote import Watcher
from engine.replica import Replica
from penstock.addresses import is_discovered
from penstock.config import Engine
from penstock.errors import StartError

Find = Callable[[str, Callable[[frozenset[str]], None]], Awaitable[None]]
log = logging.getLogger(__name__)


class Elsewhere:
    """Keeps `pool` filled with what `engine.urls` leads to. `served`: the names of the models that are asked for."""

    def __init__(self, engine: Engine, served: Sequence[str], pool: Pool, find: Find = discovery.watch) -> None:
        self.engine = engine
        self.find = find
        self.served = served
        self.pool = pool
        self._key = engine.api_key.get_secret_value() if engine.api_key else None
        self._watchers: dict[Replica, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._tasks = asyncio.TaskGroup()

    async def run(self) -> None:
        """Until cancelled. Raises StartError where an address can never be followed."""
        try:
            async with self._tasks:
                for url, weight in self.engine.urls.items():
                    if is_discovered(url):
                        self._tasks.create_task(self._follow(url, weight), name=f"find {url}")
                    else:
                        self._join(url, weight)
        except* StartError as errors:
            raise first_of(errors) from None
        finally:
            for replica in self._watchers:
                replica.close()

    async def _follow(self, address: str, weight: float) -> None:
        here: dict[str, Replica] = {}

        def apply(urls: frozenset[str]) -> None:
            for url in sorted(urls - here.keys()):
                here[url] = self._join(url, weight)
            for url in here.keys() - urls:
                here[url].drain()
                leaving = asyncio.create_task(self._leave(here.pop(url)))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)

        await self.find(address, apply)

    def _join(self, url: str, weight: float) -> Replica:
        replica = Replica.at(self._free_name(), url, self._key, weight=weight)
        watcher = Watcher(replica, self.engine.probe, self.engine.model, self.served)
        self.pool.add(replica)
        self._watchers[replica] = self._tasks.create_task(self._watch(replica, watcher), name=f"watch {replica.name}")
        return replica

    async def _watch(self, replica: Replica, watcher: Watcher) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watcher.run())
            if self.engine.routing.kv_events:
                tasks.create_task(keep_holdings(replica))

    async def _leave(self, replica: Replica) -> None:
        """Nothing new goes there; what runs may end, within `stop_s`."""
        log.info("%s leaves: %s", replica.name, replica.client.url)
        await replica.drained(self.engine.stop_s)
        self._watchers.pop(replica).cancel()
        self.pool.remove(replica)
        replica.forget()
        replica.close()

    def _free_name(self) -> str:
        """Numbers are given again, so that metrics do not grow with every pod there ever was."""
        taken = {replica.name for replica in self._watchers}
        return next(name for number in range(len(taken) + 1) if (name := f"{self.pool.name}-{number}") not in taken)


def first_of(errors: BaseExceptionGroup[StartError]) -> StartError:
    error = errors.exceptions[0]
    return first_of(error) if isinstance(error, BaseExceptionGroup) else error
