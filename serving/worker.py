"""One of several gateway processes on one port: `python -m serving.worker FD`, started by `serving/workers.py`.

What it knows of the engines started here, the parent tells it; engines elsewhere it watches itself. It never
outlives its parent.
"""

import signal

if __name__ == "__main__":  # before all that takes long to import; the parent reads the configuration, and tells
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

import asyncio
import ctypes
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import uvloop

from engine.replica import Replica
from penstock import log, metrics
from penstock.config import Config
from penstock.errors import PenstockError, StartError
from penstock.meters import Snapshot
from serving.app import Gateway
from serving.control import Channel, Told
from serving.server import Drain, bind, serve, settle
from serving.stack import Stack, composed
from serving.state import State, kept
from serving.versions import Versions

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
REPORT_S = 1.0
FIGURES_WITHIN_S = 3.0


def main() -> None:
    if sys.platform == "linux":  # also when it hangs; elsewhere only the line's end tells
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    uvloop.run(work(socket.socket(fileno=int(sys.argv[1]))))


async def work(line: socket.socket) -> None:
    parent = await Channel.over(line)
    orders = await parent.receive()
    config = Config(**orders["config"])
    log.configure(
        config.log.level, config.log.style, orders["number"], lambda lines: metrics.log_lines_lost.inc(by=lines)
    )
    try:
        with bind(*orders["address"], shared=True) as listener:
            async with kept(config) as state:
                await Worker(parent, config, orders, state).run(listener)
    except StartError as error:
        parent.tell("failed", error.message)
        await parent.close()
        raise SystemExit(1) from None


class Worker:
    """`orders`: the parent's first message, as `Workers.orders` writes it."""

    def __init__(self, parent: Channel, config: Config, orders: dict[str, Any], state: State) -> None:
        self.parent = parent
        self.config = config
        self.gateway = Gateway(config, state.keys, state.ledger)
        self.gateway.began = orders["began"]
        self.trials = state.trials
        self.gateway.figures = self._all_figures
        self.stop: asyncio.Future[Drain] = asyncio.get_running_loop().create_future()
        self.number = orders["number"]
        self.moves = 0
        self.followed: dict[str, Replica] = {}
        self.local: dict[str, list[Replica]] = {}
        self.tried: dict[str, list[Replica]] = {}
        self.versions = Versions()
        self._follow(orders)

    async def run(self, listener: socket.socket) -> None:
        """Until told to stop, and drained."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: self._drain(self._usual_drain()))
        failed: asyncio.Future[None] = loop.create_future()
        failed.add_done_callback(lambda _: self._drain(Drain()))
        async with (
            composed(self.config, self.local, failed, self.versions) as stack,
            self.gateway.admission,
            asyncio.TaskGroup() as tasks,
        ):
            self.gateway.stack = stack
            stack.left = self._leave
            self.trials.joined(stack)
            stack.move(self.local, self.versions, self.tried)
            self.parent.tell("listening")
            beside = [tasks.create_task(job) for job in (self._heed(), self._report(), self._start(stack))]
            try:
                await serve(self.gateway, listener, self.stop)
            finally:
                self.parent.tell("figures", metrics.snapshot())
                for task in beside:
                    task.cancel()
        for replica in self.followed.values():
            replica.close()
        await self.parent.close()
        if failed.done():
            failed.result()

    async def _heed(self) -> NoReturn:
        told: Told = {
            "ready": self._ready,
            "ended": self._ended,
            "moved": self._moved,
            "config": self._apply,
            "drain": lambda drain: self._drain(Drain(*drain)),
        }
        await self.parent.heed(told, {"figures": self._own_figures})
        logger.error("the parent process is gone, so this worker ends")
        os._exit(1)

    async def _report(self) -> None:
        while True:
            self.parent.tell("figures", metrics.snapshot())
            self._tell_what_leaves()
            await asyncio.sleep(REPORT_S)

    def _tell_what_leaves(self) -> None:
        leaving = self.gateway.stack.leaving() if self.gateway.stack else set()
        self.parent.tell("leaving", [self.number, self.moves, sorted(leaving)])

    async def _start(self, stack: Stack) -> None:
        await stack.until_ready()
        settle()
        self.parent.tell("ready")

    def _apply(self, told: dict[str, Any]) -> None:
        """The configuration and the versions, neither for a moment without the other."""
        self.config = Config(**told["config"])
        self._go_by(told)
        if self.gateway.stack:
            self.gateway.stack.versions = self.versions
        self.gateway.apply(self.config)
        self._tell_what_leaves()

    def _moved(self, present: dict[str, Any]) -> None:
        self._follow(present)
        if self.gateway.stack:
            self.gateway.stack.move(self.local, self.versions, self.tried)
        self._tell_what_leaves()

    def _follow(self, present: dict[str, Any]) -> None:
        """The engines of the parent, as `Workers.present` tells of them."""
        for sockets in (*present["engines"].values(), *present["tried"].values()):
            for name, path in sockets.items():
                if name not in self.followed:
                    self.followed[name] = self._follower(name, path, present["names"][name])
        self.local, self.tried = (
            {engine: [self.followed[name] for name in sockets] for engine, sockets in present[which].items()}
            for which in ("engines", "tried")
        )
        self._go_by(present)
        self._ready(present["ready"])

    def _go_by(self, told: dict[str, Any]) -> None:
        self.versions = Versions(**told["versions"])
        self.moves = told["moves"]

    def _leave(self, replicas: Sequence[Replica]) -> None:
        """Nothing runs there any more, and the parent is about to end them."""
        for replica in replicas:
            del self.followed[replica.name]
            replica.close()
            replica.forget()

    def _ended(self, name: str) -> None:
        if name in self.followed:
            self.followed[name].ended("the engine's process has ended")

    def _follower(self, name: str, socket: str, names: Sequence[str]) -> Replica:
        """A replica that another process watches: doubts go there, and its word comes back."""

        def suspect() -> None:
            replica.set_ready(False)
            self.parent.tell("suspect", name)

        replica = Replica.behind(name, Path(socket))
        replica.names = names
        replica.suspect = suspect
        return replica

    def _ready(self, states: dict[str, bool]) -> None:
        for name, ready in states.items():
            if name in self.followed:
                self.followed[name].set_ready(ready)

    def _usual_drain(self) -> Drain:
        return Drain(self.config.gateway.ready_delay_s, self.config.gateway.shutdown_s)

    def _drain(self, drain: Drain) -> None:
        if not self.stop.done():
            self.stop.set_result(drain)

    async def _own_figures(self) -> Snapshot:
        return metrics.snapshot()

    async def _all_figures(self) -> Snapshot:
        """Those of every worker, from the parent. Raises PenstockError: this worker's alone would be a wrong answer."""
        try:
            figures: Snapshot = await self.parent.ask("figures", FIGURES_WITHIN_S)
        except TimeoutError as error:
            raise PenstockError("the workers' figures could not be added up in time; try again") from error
        return figures


if __name__ == "__main__":
    main()
