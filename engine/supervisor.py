"""Keeps one engine process alive: starts it, knows when it is ready, notices when it is not alive, replaces it.

*Ready* means that a token was generated. *Alive* means that tokens are counted, or that a one-token generation ends
in time; for a while also that its processes compute, as in a long prefill, which counts no token. vLLM's /health
answers 200 while its engine is wedged, so it is not asked. A replacement kills the whole process group, for the
engine's children hold the memory.
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

import orjson

from engine import SUPERVISOR_PID, gauges
from engine.connection import Answer
from engine.diagnose import not_started
from engine.failures import from_answer
from engine.launch import Launch
from engine.machine import group_cpu_s, living
from engine.replica import Replica
from penstock import metrics
from penstock.config import ENV_PREFIX, Probe
from penstock.errors import EngineError, StartError

START_POLL_S = 0.1
EXIT_POLL_S = 0.05
RETRY_PROBE_S = 0.5
FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
STABLE_S = 120.0
GONE_S = 5.0
LOOK_AGAIN_S = 1.0
BUSY_SHARE = 0.2
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
            metrics.engine_restarts.inc(*self._labels)
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
            metrics.engine_start_seconds.set(took, *self._labels)
            self.replica.set_ready(True)
            return await self._until_dead(process)
        except asyncio.CancelledError:
            grace_s = self.stop_s
            raise
        finally:
            self.replica.ended("the engine's process has ended")
            await asyncio.shield(self._end(process, logs, grace_s))

    async def _start(self) -> Process:
        # A socket file left by a killed engine makes the next bind fail, half a minute into its start.
        self.launch.socket.unlink(missing_ok=True)
        self._last_lines.clear()
        self._counted = None
        self.log.info("starting: %s", " ".join(self.launch.argv))
        try:
            self.process = await asyncio.create_subprocess_exec(
                *self.launch.argv,
                env={**inherited(), **self.launch.env, SUPERVISOR_PID: str(os.getpid())},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                limit=LINE_LIMIT_BYTES,
                start_new_session=True,
            )
        except OSError as error:
            raise StartError(f"engine {self.launch.name} cannot be started: {error}") from error
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
        while (answer := await self._answer()) is None or answer.status != 200:
            if answer is not None and 400 <= answer.status < 500:
                raise StartError(self._refused(answer))
            if process.returncode is not None:
                await asyncio.wait([logs], timeout=GONE_S)
                raise not_started(self.launch.name, process.returncode, [*self._last_lines])
            if time.monotonic() > deadline:
                raise not_started(self.launch.name, None, [*self._last_lines])
            await asyncio.sleep(START_POLL_S)

    def _refused(self, answer: Answer) -> str:
        said = from_answer(answer.status, answer.body).message
        hint = "a model that embeds, scores or ranks needs `options: {runner: pooling}`"
        return f"engine {self.launch.name} refuses {self.launch.probe_path}: {said}; {hint}"

    async def _until_dead(self, process: Process) -> str:
        """Watches until the process has ended or has failed `probe.failures` looks in a row; returns why."""
        failures = 0
        wait_s = self.probe.interval_s
        effort = Effort(process.pid)
        while True:
            suspected = await self._pause(process, wait_s)
            if process.returncode is not None:
                return f"it ended with {process.returncode}"
            if await self._alive(suspected):
                failures, wait_s = 0, self.probe.interval_s
                effort.forgive()
                if not self._suspected.is_set():  # since this look began
                    self.replica.set_ready(True)
            elif effort.made() and effort.unrewarded_s < self.probe.busy_s:
                self.log.info("no token counted for %.0f s, but it computes", effort.unrewarded_s)
            else:
                failures, wait_s = failures + 1, min(RETRY_PROBE_S, self.probe.interval_s)
                self.log.warning("no progress and no answer to the probe, %d of %d", failures, self.probe.failures)
                if failures >= self.probe.failures:
                    return "it makes no progress and answers no probe"

    async def _pause(self, process: Process, wait_s: float) -> bool:
        """Sleeps, less if the process ends or somebody suspects it; returns whether somebody does."""
        exited = asyncio.create_task(ended(process))
        suspected = asyncio.create_task(self._suspected.wait())
        try:
            await asyncio.wait([exited, suspected], timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            return self._suspected.is_set()
        finally:
            exited.cancel()
            suspected.cancel()
            self._suspected.clear()

    async def _alive(self, suspected: bool) -> bool:
        """Whether tokens were counted since the last look, or the probe's is generated now. Of a suspect, only what
        happens from now on is believed; a probe that waits behind other work is forgiven while that work goes on."""
        before, self._counted = self._counted, await self._tokens()
        if more(self._counted, before) and not suspected:
            return True
        probe = asyncio.create_task(self._generates())
        try:
            while not probe.done():
                await asyncio.wait([probe], timeout=LOOK_AGAIN_S)
                at_probe, self._counted = self._counted, await self._tokens()
                if more(self._counted, at_probe):
                    return True
            return probe.result()
        finally:
            probe.cancel()

    async def _generates(self) -> bool:
        answer = await self._answer()
        return answer is not None and answer.status == 200

    async def _answer(self) -> Answer | None:
        """What the bounded one-token generation is answered, None if it is not in time."""
        body = orjson.dumps(dict(self.launch.probe_body))
        try:
            return await self.replica.client.ask("POST", self.launch.probe_path, body, timeout_s=self.probe.timeout_s)
        except EngineError:
            return None

    async def _tokens(self) -> float | None:
        """How many tokens the engine has read and written, None if it does not say in time."""
        figures = await gauges.collect(self.replica.client, self._labels, self.probe.timeout_s)
        return figures.get("prompt_tokens", 0.0) + figures.get("generation_tokens", 0.0) if figures else None

    async def _end(self, process: Process, logs: asyncio.Task[None], grace_s: float) -> None:
        """SIGTERM and `grace_s` to drain, then SIGKILL to every process of the group."""
        if grace_s and process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended(process), grace_s)
        deadline = time.monotonic() + GONE_S
        while kill_group(process.pid) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        try:
            await asyncio.wait_for(ended(process), GONE_S)
        except TimeoutError:
            self.log.error("process %d cannot be killed; a driver may hold it", process.pid)
        await asyncio.wait([logs], timeout=1)
        logs.cancel()
        for left in self.launch.socket.parent.glob(f"{self.launch.socket.name}*"):  # the KV events' sockets too
            left.unlink(missing_ok=True)

    def _suspect(self) -> None:
        """No request goes there until the next look, which is now."""
        self.replica.set_ready(False)
        self._suspected.set()

    @property
    def _labels(self) -> tuple[str, str]:
        return self.replica.labels


class Effort:
    """Whether an engine's processes compute, while nothing shows for it."""

    def __init__(self, group: int) -> None:
        self.group = group
        self.forgive()

    def forgive(self) -> None:
        """A token was counted: what is unrewarded begins now."""
        self._since = self._looked = time.monotonic()
        self._cpu_s = group_cpu_s(self.group)

    @property
    def unrewarded_s(self) -> float:
        return time.monotonic() - self._since

    def made(self) -> bool:
        """Whether the processes had a core for a good part of the time since this was last asked."""
        now, cpu_s = time.monotonic(), group_cpu_s(self.group)
        made = cpu_s - self._cpu_s > BUSY_SHARE * (now - self._looked)
        self._looked, self._cpu_s = now, cpu_s
        return made


def more(count: float | None, before: float | None) -> bool:
    return count is not None and before is not None and count > before


def inherited() -> dict[str, str]:
    """Our environment without Penstock's own part, in which the gateway's keys may stand."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}


async def ended(process: Process) -> None:
    """Returns when the process has; its own `wait` also waits for the pipe, which a child of it may hold open."""
    while process.returncode is None:
        await asyncio.sleep(EXIT_POLL_S)


def kill_group(leader: int) -> bool:
    """Whether any of its processes may still be alive."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return any(living(leader))


def backoff(failures: int) -> float:
    """Seconds before the next try: doubling from one to sixty, up to half of it left to chance, so that replicas
    that failed together do not come back together."""
    ceiling = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(10, max(0, failures - 1)))
    return float(ceiling * random.uniform(0.5, 1.0))
