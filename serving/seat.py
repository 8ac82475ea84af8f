"""One worker by its number: process after process, as long as its parent wants one there."""

import asyncio
import contextlib
import logging
import socket
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Sequence
from typing import Any

from engine.supervisor import backoff
from penstock import metrics
from penstock.errors import StartError
from penstock.meters import Snapshot
from serving.control import Asked, Channel, Told
from serving.server import Drain

log = logging.getLogger(__name__)

FRESH_WITHIN_S = 1.0
STABLE_S = 60.0
GONE_S = 5.0
LOOK_S = 1.0


class Seat:
    """`command` starts the process; the number of a file descriptor, its end of the channel, is added to it.

    `orders` makes the first message, `told` and `asked` say what to do about what the worker sends. A worker that has
    not reported for `silent_s` hangs, and is killed: the kernel would go on giving it connections.
    """

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        silent_s: float,
        orders: Callable[[int], Any],
        told: Told,
        asked: Asked,
    ) -> None:
        self.number = number
        self.command = command
        self.silent_s = silent_s
        self.orders = orders
        self.told = {**told, **self._own_told()}
        self.asked = asked
        self.ready = asyncio.Event()
        self.ended: Snapshot = {}  # what those that have ended had counted
        self.running: Snapshot = {}
        self._channel: Channel | None = None
        self._heard_at = 0.0
        self._listened = False
        self._failure: str | None = None
        self._leaving = asyncio.Event()

    async def keep(self) -> None:
        """Until it has drained; cancelled, kills it. Raises StartError if the first start fails."""
        quick_failures = 0
        while True:
            began = time.monotonic()
            try:
                why = await self._live()
            except StartError as error:
                why = error.message
            if self._leaving.is_set():
                return
            if not self._listened:
                raise StartError(f"worker {self.number} did not start: {why}")
            quick_failures = 0 if time.monotonic() - began > STABLE_S else quick_failures + 1
            delay_s = backoff(quick_failures) if quick_failures > 1 else 0.0
            metrics.worker_restarts.inc()
            log.error("worker %d replaced in %.1f s: %s", self.number, delay_s, why)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), delay_s)
                return

    def tell(self, what: str, value: Any = None) -> None:
        if self._channel:
            self._channel.tell(what, value)

    def drain(self, drain: Drain) -> None:
        """Lets the process end, and no other come."""
        self._leaving.set()
        self.tell("drain", [drain.delay_s, drain.patience_s])

    async def refresh(self) -> None:
        """Brings `running` up to date, if the worker answers in time."""
        channel = self._channel
        if channel is None or not self.running:  # it is starting, and has counted nothing yet
            return
        with contextlib.suppress(TimeoutError):  # it is busy: its last word counts
            snapshot = await channel.ask("figures", FRESH_WITHIN_S)
            if self._channel is channel:
                self._reported(snapshot)

    async def _live(self) -> str:
        """One process, from start to end. Returns why it ended."""
        process, line = await self._spawn()
        self._channel = channel = await Channel.over(line)
        self._heard_at = time.monotonic()
        watching = asyncio.create_task(self._watch(process))
        try:
            channel.tell("orders", self.orders(self.number))
            await channel.heed(self.told, self.asked)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), GONE_S)
            return self._failure or f"it ended with {process.returncode}"
        finally:
            watching.cancel()
            self._channel = None
            self.ended = metrics.merged([self.ended, metrics.lasting(self.running)])
            self.running = {}
            if process.returncode is None:
                process.kill()
            await process.wait()
            await channel.close()

    async def _spawn(self) -> tuple[Process, socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self.command,
                    str(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=DEVNULL,
                    start_new_session=True,  # a terminal's Ctrl-C is for the parent, which tells them
                )
            except OSError as error:
                ours.close()
                raise StartError(f"{self.command[0]} cannot be run: {error}") from error
        return process, ours

    async def _watch(self, process: Process) -> None:
        while time.monotonic() - self._heard_at < self.silent_s:
            await asyncio.sleep(LOOK_S)
        log.error("worker %d has been silent for %.0f s and is killed", self.number, self.silent_s)
        process.kill()

    def _own_told(self) -> Told:
        return {
            "listening": lambda _: setattr(self, "_listened", True),
            "ready": lambda _: self.ready.set(),
            "failed": lambda message: setattr(self, "_failure", message),
            "figures": self._reported,
        }

    def _reported(self, snapshot: Snapshot) -> None:
        self.running = snapshot
        self._heard_at = time.monotonic()
