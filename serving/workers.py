"""Several gateway processes on one port: the parent, which runs the engines and answers no request itself.

Each worker listens on the port for itself (SO_REUSEPORT), so the kernel spreads the connections. The parent holds
the port, keeps the workers alive, tells them which engines are ready, and adds up what they count.
"""

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from engine.replica import Replica
from penstock import metrics
from penstock.config import Config
from penstock.meters import Snapshot
from penstock.source import Source
from serving.engines import Engines, engines_here
from serving.hosts import followed
from serving.keys import Keys
from serving.reload import Reload
from serving.seat import GONE_S, Seat
from serving.server import FORCED_AFTER_S, Drain, bound, settle, told_to_stop
from serving.stack import Stack, composed
from serving.state import governed
from serving.versions import Versions

COMMAND = (sys.executable, "-P", "-m", "serving.worker")
SILENT_S = 30.0
LOOK_S = 0.1


def hold(host: str, port: int) -> socket.socket:
    """Keeps the port for the workers, without listening. Raises StartError if anybody else listens there."""
    with bound(host, port, shared=False) as alone:  # which fails beside other workers, as a shared one would not
        return bound(host, alone.getsockname()[1], shared=True)


async def serve(config: Config, source: Source, address: tuple[str, int], ready: Callable[[Keys], None]) -> None:
    """Until SIGTERM or SIGINT; `ready` is called when every worker can answer. `source` is followed. Raises
    StartError."""
    metrics.limits_shared.forget()  # no limit is held here: whether they are shared, the workers say
    async with (
        governed(config, address) as state,
        engines_here(config) as engines,
        composed(reading_adapters(config), {}, engines.failed, engines.versions) as outside,
    ):
        workers = Workers(config, address, engines, outside=outside)
        async with followed(config, state.store, engines, workers) as moving:
            running = asyncio.create_task(workers.run())
            stop = asyncio.create_task(told_to_stop(lambda: workers.config.gateway, engines.failed))

            def apply(config: Config) -> None:
                state.keys.configure(config.gateway.keys)
                moving.apply(config)

            reload = Reload(source, config, apply, state.moved, moving.prepare)
            reloading = asyncio.create_task(reload.run())
            starting = asyncio.create_task(started(workers, lambda: ready(state.keys)))
            try:
                await asyncio.wait([stop, running], return_when=asyncio.FIRST_COMPLETED)
                if stop.done():
                    drain = stop.result()
                    workers.drain(drain)
                    await asyncio.wait([running], timeout=drain.delay_s + drain.patience_s + FORCED_AFTER_S + GONE_S)
            finally:
                for task in (running, stop, starting, reloading):
                    task.cancel()
                await asyncio.wait([running, stop, starting, reloading])
    if engines.failed.done():
        engines.failed.result()
    with contextlib.suppress(asyncio.CancelledError):  # one that did not end in time
        running.result()


async def started(workers: "Workers", ready: Callable[[], None]) -> None:
    await workers.until_ready()
    settle()
    ready()


class Workers:
    """`command` and `silent_s` are each `Seat`'s. To the versions that move they are `Hosts`; `outside` has the engines
    elsewhere that read adapters."""

    def __init__(
        self,
        config: Config,
        address: tuple[str, int],
        engines: Engines,
        command: Sequence[str] = COMMAND,
        silent_s: float = SILENT_S,
        outside: Stack | None = None,
    ) -> None:
        self.config = config
        self.address = address
        self.engines = engines
        self.began = int(time.time())
        self.versions = engines.versions
        self.outside = outside
        self._moves = 0
        self._leaving: dict[int, tuple[int, set[str]]] = {}  # of each worker, after which move
        self._follow()
        told = {"suspect": self._suspect, "leaving": self._told_what_leaves}
        asked = {"figures": self.figures}
        self.seats = [
            Seat(number, command, silent_s, self.orders, told, asked) for number in range(1, config.gateway.workers + 1)
        ]

    async def run(self) -> None:
        """Until every worker has drained; cancelled, kills them. Raises StartError if one cannot start at all."""
        try:
            async with asyncio.TaskGroup() as keeping:
                for seat in self.seats:
                    keeping.create_task(seat.keep())
        except ExceptionGroup as failures:  # the first has ended the others
            raise failures.exceptions[0] from None

    async def until_ready(self) -> None:
        """Returns when each has been ready, as `Stack.ready` says."""
        for seat in self.seats:
            await seat.ready.wait()

    def apply(self, config: Config, versions: Versions) -> None:
        """Those that are yet to come begin with it."""
        self.config = config
        self._go_by(versions)
        if self.outside:
            self.outside.change(reading_adapters(config))
        self._tell("config", {"config": config.revealed(), **self.going_by()})

    def move(self, versions: Versions) -> None:
        self._go_by(versions)
        self._follow()
        self._tell("moved", self.present())

    def _go_by(self, versions: Versions) -> None:
        self.versions = versions
        if self.outside:
            self.outside.versions = versions
        self._moves += 1

    async def left(self, names: Collection[str]) -> None:
        """A worker that has ended since runs nothing; the next one begins with what is present."""
        moves, names = self._moves, set(names)

        def has_left(seat: Seat) -> bool:
            after, leaving = self._leaving.get(seat.number, (-1, set()))
            return after >= moves and not leaving & names

        while not all(map(has_left, self.seats)):
            await asyncio.sleep(LOOK_S)

    def elsewhere(self, engine: str) -> Sequence[Replica] | None:
        pool = self.outside.pools.get(engine) if self.outside else None
        return pool.replicas if pool else None

    def _told_what_leaves(self, said: Sequence[Any]) -> None:
        number, moves, names = said
        self._leaving[number] = (moves, set(names))

    def _follow(self) -> None:
        for supervisor in self.engines.all:
            supervisor.replica.changed = lambda replica: self._tell("ready", states([replica]))
            supervisor.replica.restarted = lambda replica: self._tell("ended", replica.name)

    def _suspect(self, name: str) -> None:
        for replica in self.engines.living:
            if replica.name == name:
                replica.suspect()

    def drain(self, drain: Drain) -> None:
        for seat in self.seats:
            seat.drain(drain)

    async def figures(self) -> Snapshot:
        """What all processes have counted, those that have ended too. It never shrinks: what was shown is kept."""
        await asyncio.gather(*(seat.refresh() for seat in self.seats))
        counted = [snapshot for seat in self.seats for snapshot in (seat.ended, seat.running)]
        return metrics.merged([metrics.snapshot(), *counted])

    def orders(self, number: int) -> dict[str, Any]:
        """What a worker must know to begin. The configuration has the keys, so no file and no argument carries it."""
        self._leaving.pop(number, None)
        return {
            "number": number,
            "config": self.config.revealed(),
            "address": self.address,
            "began": self.began,
            **self.present(),
        }

    def present(self) -> dict[str, Any]:
        """The engines here, and what is served by them, since the last move."""
        return {
            "engines": {
                name: {each.replica.name: str(each.launch.socket) for each in generation.supervisors}
                for name, generation in self.engines.current.items()
            },
            "tried": {
                name: {each.replica.name: str(each.launch.socket) for each in generation.supervisors}
                for name, generation in self.engines.tried.items()
            },
            "names": {each.replica.name: list(each.launch.served) for each in self.engines.all},
            "ready": states(each.replica for each in self.engines.all),
            **self.going_by(),
        }

    def going_by(self) -> dict[str, Any]:
        return {"versions": asdict(self.versions), "moves": self._moves}

    def _tell(self, what: str, value: Any) -> None:
        for seat in self.seats:
            seat.tell(what, value)


def reading_adapters(config: Config) -> Config:
    """What of it is elsewhere and may be given adapters."""
    elsewhere = {name: engine for name, engine in config.engines.items() if engine.urls and config.registry.adapters}
    models = {name: model for name, model in config.models.items() if model.engine in elsewhere and model.adapter}
    return config.model_copy(update={"engines": elsewhere, "models": models})


def states(replicas: Iterable[Replica]) -> dict[str, bool]:
    return {replica.name: replica.ready for replica in replicas}
