"""The replicas of an engine that runs elsewhere: each watched, and found again where they come and go."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

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

RELIEF_S = 10.0
RELIEF_POLL_S = 0.02


@dataclass(eq=False)
class Member:
    """A replica that is watched, and the configured address that led to it."""

    address: str
    watcher: Watcher
    watching: asyncio.Task[None]
    leaves: bool = False


class Elsewhere:
    """Keeps `pool` filled with what `engine.urls` leads to. `served`: the names of the models that are asked for."""

    def __init__(self, engine: Engine, served: Sequence[str], pool: Pool, find: Find = discovery.watch) -> None:
        self.engine = engine
        self.find = find
        self.served = served
        self.pool = pool
        self._members: dict[Replica, Member] = {}
        self._finding: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._tasks = asyncio.TaskGroup()
        self._runs = False

    async def run(self) -> None:
        """Until cancelled. Raises StartError where an address can never be followed."""
        try:
            async with self._tasks:
                self._runs = True
                for address in self.engine.urls:
                    self._enter(address)
                await asyncio.Event().wait()
        except* StartError as errors:
            raise first_of(errors) from None
        finally:
            self._runs = False
            for leaving in self._leaving:
                leaving.cancel()
            for replica in self._members:
                replica.close()

    def change(self, engine: Engine, served: Sequence[str]) -> None:
        """The replicas that are still named stay as they are, with their connections. Those that are not get nothing
        new as soon as another is ready, at the latest in RELIEF_S, and leave when they have ended what they do."""
        before, self.engine, self.served = self.engine, engine, served
        if not self._runs:
            return
        for address in engine.urls.keys() - before.urls.keys():
            self._enter(address)
        for address in before.urls.keys() - engine.urls.keys():
            if address in self._finding:
                self._finding.pop(address).cancel()
            for replica in self._here(address).values():
                self._retire(replica, math.inf, RELIEF_S)
        for replica, member in self._members.items():
            weight = engine.urls.get(member.address, replica.weight)
            if weight != replica.weight:
                self.pool.reweigh(replica, weight)
            if engine.api_key != before.api_key:
                replica.client.use_key(self._key)
            member.watcher.change(engine.probe, engine.model, served)

    @property
    def _key(self) -> str | None:
        return self.engine.api_key.get_secret_value() if self.engine.api_key else None

    def _enter(self, address: str) -> None:
        if is_discovered(address):
            finding = self.find(address, partial(self._found, address))
            self._finding[address] = self._tasks.create_task(awaited(finding), name=f"find {address}")
        else:
            self._join(address, address)

    def _found(self, address: str, urls: frozenset[str]) -> None:
        here = self._here(address)
        for url in sorted(urls - here.keys()):
            self._join(address, url)
        for url in here.keys() - urls:
            self._retire(here[url], self.engine.stop_s)

    def _here(self, address: str) -> dict[str, Replica]:
        """By their URLs, without those that leave."""
        return {
            replica.client.url: replica
            for replica, member in self._members.items()
            if member.address == address and not member.leaves
        }

    def _join(self, address: str, url: str) -> None:
        replica = Replica.at(self._free_name(), url, self._key, weight=self.engine.urls[address])
        watcher = Watcher(replica, self.engine.probe, self.engine.model, self.served)
        self.pool.add(replica)
        watching = self._tasks.create_task(self._watch(replica, watcher), name=f"watch {replica.name}")
        self._members[replica] = Member(address, watcher, watching)

    async def _watch(self, replica: Replica, watcher: Watcher) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watcher.run())
            if self.engine.routing.kv_events:
                tasks.create_task(keep_holdings(replica))

    def _retire(self, replica: Replica, within_s: float, relief_s: float = 0.0) -> None:
        """`relief_s`: how long it may wait for another to be ready."""
        self._members[replica].leaves = True
        if not relief_s or self._has_relief():
            replica.drain()
        leaving = asyncio.create_task(self._leave(replica, within_s, relief_s))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    def _has_relief(self) -> bool:
        return any(replica.usable and not member.leaves for replica, member in self._members.items())

    async def _leave(self, replica: Replica, within_s: float, relief_s: float) -> None:
        """Nothing new goes there; what runs may end."""
        log.info("%s leaves: %s", replica.name, replica.client.place)
        deadline = asyncio.get_running_loop().time() + relief_s
        while not replica.draining and not self._has_relief() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(RELIEF_POLL_S)
        replica.drain()
        await replica.drained(within_s)
        self._members.pop(replica).watching.cancel()
        self.pool.remove(replica)
        replica.forget()
        replica.close()

    def _free_name(self) -> str:
        """Numbers are given again, so that metrics do not grow with every pod there ever was."""
        taken = {replica.name for replica in self._members}
        return next(name for number in range(len(taken) + 1) if (name := f"{self.pool.name}-{number}") not in taken)


async def awaited(work: Awaitable[None]) -> None:
    """As a coroutine, which a task needs."""
    await work


def first_of(errors: BaseExceptionGroup[StartError]) -> StartError:
    error = errors.exceptions[0]
    return first_of(error) if isinstance(error, BaseExceptionGroup) else error
