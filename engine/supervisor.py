"""Keeps one engine process alive: starts it, knows when it is ready, notices when it is not alive, replaces it.

*Ready* means that a token was generated. *Alive* means that tokens are counted, or that a one-token generation ends
in time: vLLM's /health answers 200 while its engine is wedged, so it is not asked. A replacement kills the whole
process group, for the engine's children hold the memory.
"""

import asyncio
import contextlib
import logging
import os
import random
import re
import signal
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque

import httpx2

from engine import SUPERVISOR_PID, gauges
from engine.diagnose import explain
from engine.launch import Launch
from engine.replica import Replica
from penstock import metrics
from penstock.config import Probe
from penstock.errors import StartError

START_POLL_S = 0.1
METRICS_TIMEOUT_S = 5.0
RETRY_PROBE_S = 0.5
FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
STABLE_S = 120.0
GONE_S = 5.0
KEPT_LINES = 200
LINE_LIMIT_BYTES = 2**20
LEVEL = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")


class Supervisor:
    """Runs `launch` for as long as `run` does; `replica` is ready exactly while the process serves."""

    def __init__(self, launch: Launch, probe: Probe, stop_s: float, replica: Replica) -> None:
        self.launch = launch
        self.probe = probe
        self.stop_s = stop_s
        self.replica = replica
        self.restarts = 0
        self.process: Process | None = None
        self.log = logging.getLogger(f"engine.{launch.name}")
        self._suspected = asyncio.Event()
        self._counted: float | None = None
        self._last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        replica.suspect = self._suspect

    async def run(self) -> None:
        """Until cancelled; then the engine drains for at most `stop_s`. Raises StartError if the first start fails."""
        was_ready = False
        quick_failures = 0
        while True:
            started = time.monotonic()
            try:
                why = await self._live()
                was_ready = True
            except StartError as error:
                if not was_ready:
                    raise
                why = error.message
            quick_failures = 0 if time.monotonic() - started > STABLE_S else quick_failures + 1
            delay = backoff(quick_failures)
            self.restarts += 1
            metrics.engine_restarts.labels(*self._labels).inc()
            self.log.error("engine replaced in %.1f s: %s", delay, why)
            await asyncio.sleep(delay)

    async def _live(self) -> str:
        """One process, from start to end. Returns why it ended."""
        began = time.monotonic()
        process = await self._start()
        logs = asyncio.create_task(self._copy_log(process))
        grace_s = 0.0
        try:
            await self._until_first_token(process, logs)
            took = time.monotonic() - began
            self.log.info("ready after %.1f s", took)
            metrics.engine_start_seconds.labels(*self._labels).set(took)
            self._set_ready(True)
            return await self._until_dead(process)
        except asyncio.CancelledError:
            grace_s = self.stop_s
            raise
        finally:
            self._set_ready(False)
            await asyncio.shield(self._end(process, logs, grace_s))

    async def _start(self) -> Process:
        # A socket file left by a killed engine makes the next bind fail, half a minute into its start.
        self.launch.socket.unlink(missing_ok=True)
        self._last_lines.clear()
        self.log.info("starting: %s", " ".join(self.launch.argv))
        self.process = await asyncio.create_subprocess_exec(
            *self.launch.argv,
            env={**os.environ, **self.launch.env, SUPERVISOR_PID: str(os.getpid())},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            limit=LINE_LIMIT_BYTES,
            start_new_session=True,
        )
        return self.process

    async def _copy_log(self, process: Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:  # a line beyond the limit: the reader has dropped it
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip()
            if line:
                self._last_lines.append(line)
                level = LEVEL.search(line)
                self.log.log(getattr(logging, level[1]) if level else logging.INFO, "%s", line)

    async def _until_first_token(self, process: Process, logs: asyncio.Task[None]) -> None:
        deadline = time.monotonic() + self.probe.start_timeout_s
        while not await self._generates():
            if process.returncode is not None:
                await asyncio.wait([logs], timeout=GONE_S)
                raise StartError(explain(self.launch.name, process.returncode, [*self._last_lines]))
            if time.monotonic() > deadline:
                raise StartError(explain(self.launch.name, None, [*self._last_lines]))
            await asyncio.sleep(START_POLL_S)

    async def _until_dead(self, process: Process) -> str:
        """Watches until the process has ended or has failed `probe.failures` looks in a row; returns why."""
        failures = 0
        wait_s = self.probe.interval_s
        while True:
            suspected = await self._pause(process, wait_s)
            if process.returncode is not None:
                return f"it ended with {process.returncode}"
            if await self._alive(suspected):
                failures, wait_s = 0, self.probe.interval_s
                self._set_ready(True)
                continue
            failures, wait_s = failures + 1, min(RETRY_PROBE_S, self.probe.interval_s)
            self.log.warning("no progress and no answer to the probe, %d of %d", failures, self.probe.failures)
            if failures >= self.probe.failures:
                return "it makes no progress and answers no probe"

    async def _pause(self, process: Process, wait_s: float) -> bool:
        """Sleeps, less if the process ends or somebody suspects it; returns whether somebody does."""
        exited = asyncio.create_task(process.wait())
        suspected = asyncio.create_task(self._suspected.wait())
        try:
            await asyncio.wait([exited, suspected], timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            return self._suspected.is_set()
        finally:
            exited.cancel()
            suspected.cancel()
            self._suspected.clear()

    async def _alive(self, suspected: bool) -> bool:
        """Whether tokens are being counted, or the probe's is generated. Of a suspect, only what happens from now on
        is believed; a probe that waits behind other work is forgiven while that work goes on."""
        before, self._counted = self._counted, await self._tokens()
        if self._counted not in (None, before) and not suspected:
            return True
        if await self._generates():
            return True
        at_probe, self._counted = self._counted, await self._tokens()
        return None not in (at_probe, self._counted) and at_probe != self._counted

    async def _generates(self) -> bool:
        """The bounded one-token generation."""
        try:
            async with asyncio.timeout(self.probe.timeout_s):
                answer = await self.replica.client.post(self.launch.probe_path, json=dict(self.launch.probe_body))
        except (httpx2.HTTPError, TimeoutError):
            return False
        return answer.status_code == 200

    async def _tokens(self) -> float | None:
        """How many tokens the engine has read and written, None if it does not say in time."""
        try:
            async with asyncio.timeout(min(METRICS_TIMEOUT_S, self.probe.timeout_s)):
                answer = await self.replica.client.get("/metrics")
            figures = gauges.read(answer.text)
        except (httpx2.HTTPError, TimeoutError, ValueError):
            return None
        for figure, value in figures.items():
            metrics.engine_gauge.labels(*self._labels, figure).set(value)
        return figures.get("prompt_tokens", 0.0) + figures.get("generation_tokens", 0.0) if figures else None

    async def _end(self, process: Process, logs: asyncio.Task[None], grace_s: float) -> None:
        """SIGTERM and `grace_s` to drain, then SIGKILL to every process of the group."""
        if grace_s and process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), grace_s)
        deadline = time.monotonic() + GONE_S
        while kill_group(process.pid) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await process.wait()
        await asyncio.wait([logs], timeout=1)
        logs.cancel()
        self.launch.socket.unlink(missing_ok=True)

    def _suspect(self) -> None:
        """No request goes there until the next look, which is now."""
        self.replica.ready.clear()
        self._suspected.set()

    def _set_ready(self, ready: bool) -> None:
        if ready:
            self.replica.ready.set()
        else:
            self.replica.ready.clear()
        metrics.engine_ready.labels(*self._labels).set(ready)

    @property
    def _labels(self) -> tuple[str, str]:
        engine, _, replica = self.launch.name.rpartition("-")
        return engine, replica


def kill_group(leader: int) -> bool:
    """Whether anything was left to kill."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def backoff(failures: int) -> float:
    """Seconds before try `failures`: doubling from one second to a minute, half of it by chance (full decorrelation
    of many replicas is not needed; not starting all in the same instant is)."""
    ceiling = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** max(0, failures - 1))
    return float(ceiling * random.uniform(0.5, 1.0))
