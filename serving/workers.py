"""Several gateway processes on one port: the parent, which runs the engines and answers no request itself.

Each worker listens on the port for itself (SO_REUSEPORT), so the kernel spreads the connections. The parent holds
the port, keeps the workers alive, tells them which engines are ready, and adds up what they count.
"""

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from engine.replica import Replica
from penstock import metrics
from penstock.config import Config
from penstock.meters import Snapshot
from penstock.source import Source
from serving.keys import Keys
from serving.reload import Reload
from serving.seat import GONE_S, Seat
from serving.server import FORCED_AFTER_S, Drain, bound, settle, told_to_stop
from serving.stack import Engines, engines_here
from serving.state import governed

COMMAND = (sys.executable, "-P", "-m", "serving.worker")
SILENT_S = 30.0


def hold(host: str, port: int) -> socket.socket:
    """Keeps the port for the workers, without listening. Raises StartError if anybody else listens there."""
    with bound(host, port, shared=False) as alone:  # which fails beside other workers, as a shared one would not
        return bound(host, alone.getsockname()[1], shared=True)


async def serve(config: Config, source: Source, address: tuple[str, int], ready: Callable[[Keys], None]) -> None:
    """Until SIGTERM or SIGINT; `ready` is called when every worker can answer. `source` is followed. Raises
    StartError."""
    metrics.limits_shared.forget()  # no limit is held here: whether they are shared, the workers say
    async with governed(config, address) as state, engines_here(config) as engines:
        workers = Workers(config, address, engines)
        running = asyncio.create_task(workers.run())
        stop = asyncio.create_task(told_to_stop(lambda: workers.config.gateway, engines.failed))

        def apply(config: Config) -> None:
            state.keys.configure(config.gateway.keys)
            workers.apply(config)

        reloading = asyncio.create_task(Reload(source, config, apply, state.moved).run())
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
    """`command` and `silent_s` are each `Seat`'s."""

    def __init__(
        self,
        config: Config,
        address: tuple[str, int],
        engines: Engines,
        command: Sequence[str] = COMMAND,
        silent_s: float = SILENT_S,
    ) -> None:
        self.config = config
        self.address = address
        self.engines = engines
        self.began = int(time.time())
        self._local = {supervisor.replica.name: supervisor.replica for supervisor in engines.all}
        for replica in self._local.values():
            replica.changed = lambda replica: self._tell("ready", states([replica]))
            replica.restarted = lambda replica: self._tell("ended", replica.name)
        told = {"suspect": lambda name: self._local[name].suspect()}
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
        """Returns when each has had a replica of every engine ready."""
        for seat in self.seats:
            await seat.ready.wait()

    def apply(self, config: Config) -> None:
        """Every worker moves to it, and those that are yet to come begin with it."""
        self.config = config
        self._tell("config", config.revealed())

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
        return {
            "number": number,
            "config": self.config.revealed(),
            "address": self.address,
            "began": self.began,
            "engines": {
                name: {supervisor.replica.name: str(supervisor.launch.socket) for supervisor in supervisors}
                for name, supervisors in self.engines.supervisors.items()
            },
            "names": {
                supervisor.replica.name: list(supervisor.launch.served)
                for supervisors in self.engines.supervisors.values()
                for supervisor in supervisors
            },
            "ready": states(self._local.values()),
        }

    def _tell(self, what: str, value: Any) -> None:
        for seat in self.seats:
            seat.tell(what, value)


def states(replicas: Iterable[Replica]) -> dict[str, bool]:
    return {replica.name: replica.ready for replica in replicas}
