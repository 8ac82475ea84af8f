"""Where the parts meet: the configuration becomes engines that run and one served model per name."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import machine
from engine.asked import Limits
from engine.elsewhere import Elsewhere
from engine.holdings import keep_holdings
from engine.launch import plan
from engine.machine import Machine
from engine.pool import Pool
from engine.replica import Replica
from engine.room import Room
from engine.route import Route
from engine.scripted import Scripted
from engine.supervisor import Supervisor
from penstock.config import Config, Engine, Gateway, Script
from penstock.home import run_dir
from registry.canaries import Canary
from registry.canary_figures import Both
from registry.resolve import with_local_models
from serving.answer import Answer
from serving.relay import Relay
from serving.trial import Trial

Served = Relay | Answer
READY_POLL_S = 0.05


class Stack:
    """The served models and the engines under them, moved from one configuration to the next between two requests.

    Those that run end on what they began with. What has not changed stays as it is: its pool, its connections, what
    is known of its caches. `failed` ends with the first error that an engine's watcher cannot mend.
    """

    def __init__(self, local: Mapping[str, Sequence[Replica]], failed: asyncio.Future[None]) -> None:
        self.models: dict[str, Served] = {}
        self.pools: dict[str, Pool] = {}
        self.failed = failed
        self.room = Room()
        self._config: Config | None = None
        self._local = local
        self._elsewhere: dict[str, Elsewhere] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._coming: set[Pool] = set()
        self._trials: dict[str, Trial] = {}

    @property
    def ready(self) -> bool:
        """Whether every engine has a replica that is. One that is added later counts from when it was first: a load
        balancer need not take the others' requests away for it."""
        self._coming = {pool for pool in self._coming if not pool.ready}
        return all(pool.ready or pool in self._coming for pool in self.pools.values())

    async def until_ready(self) -> None:
        """Of every engine at least one replica; which engines those are may change meanwhile."""
        while not self.ready:
            await asyncio.sleep(READY_POLL_S)

    def change(self, config: Config) -> None:
        """Nothing here waits or fails: that `config` can be served is known (`serving/reload.py`)."""
        engines = {name: engine for name, engine in config.engines.items() if engine.kind != "scripted"}
        for name in self.pools.keys() - engines.keys():
            self._let_go(name, self.pools[name])
        self.pools = {name: self._pool(name, engine, config) for name, engine in engines.items()}
        self.room.most_bytes = config.gateway.max_answers_bytes
        self.models = served_models(config, self.pools, self.room)
        self._coming &= set(self.pools.values())
        self._config = config
        self._attach()

    def try_out(self, canary: Canary, routes: Mapping[str, Route], both: Both) -> None:
        """From the next request on a share of what these served models are asked goes by these routes."""
        self._trials |= {name: Trial(canary, route, both) for name, route in routes.items()}
        self._attach()

    def end_trial(self, canary: Canary) -> None:
        self._trials = {name: trial for name, trial in self._trials.items() if trial.canary.id != canary.id}
        self._attach()

    def _attach(self) -> None:
        for name, served in self.models.items():
            if isinstance(served, Relay):
                served.trial = self._trials.get(name)

    def _pool(self, name: str, engine: Engine, config: Config) -> Pool:
        pool, served = self.pools.get(name), served_by(config, name)
        replicas = self._local.get(name, ()) if not engine.urls else ()
        for replica in replicas:
            replica.serve(served)
        if pool is None:
            pool = Pool(name, replicas, config.gateway.engine_wait_s, engine.routing)
            if self._config:
                self._coming.add(pool)
            if engine.urls:
                self._elsewhere[name] = elsewhere = Elsewhere(engine, served, pool)
                self._watching[name] = self._beside(elsewhere.run())
            elif engine.routing.kv_events:
                for replica in replicas:
                    self._beside(keep_holdings(replica))
            return pool
        pool.change(config.gateway.engine_wait_s, engine.routing)
        if engine.urls:
            self._elsewhere[name].change(engine, served)
        return pool

    def _let_go(self, name: str, pool: Pool) -> None:
        """No model leads there any more; who waits for a turn is yet to come."""
        assert self._config is not None
        longest_s = max((model.queue_s for model in self._config.models.values() if model.engine == name), default=0)
        watching = self._watching.pop(name)
        del self._elsewhere[name]

        async def leave() -> None:
            await asyncio.sleep(longest_s)
            await pool.idle()
            watching.cancel()
            await asyncio.wait([watching])
            for replica in pool.replicas:
                replica.forget()

        self._beside(leave())

    def _beside(self, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = watched(job, self.failed)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return task

    async def close(self) -> None:
        """Whatever still runs here has ended, or been told that it must."""
        await ended(list(self._jobs), self.failed)


@dataclass(frozen=True)
class Engines:
    """Those started here, by name. `failed` ends with the first error that a supervisor cannot mend."""

    supervisors: Mapping[str, Sequence[Supervisor]]
    failed: asyncio.Future[None]

    @property
    def all(self) -> list[Supervisor]:
        return [supervisor for supervisors in self.supervisors.values() for supervisor in supervisors]

    @property
    def replicas(self) -> dict[str, list[Replica]]:
        return {name: [each.replica for each in supervisors] for name, supervisors in self.supervisors.items()}


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Stack]:
    """Everything that is configured, in this process. Raises StartError for what cannot start."""
    async with engines_here(config) as engines, composed(config, engines.replicas, engines.failed) as stack:
        yield stack


@asynccontextmanager
async def engines_here(config: Config) -> AsyncIterator[Engines]:
    """Starts the engines that run here; on leaving, drains and ends them. Raises StartError."""
    folder = run_dir()
    sockets = (folder / f"{number}.sock" for number in itertools.count())
    named = {name: engine for name, engine in config.engines.items() if engine.model and not engine.urls}
    local = await with_local_models(config, named)
    here = machine.detect().shared_by(sum(engine.replicas for engine in local.values())) if local else None
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    try:
        supervisors = {
            name: started(name, engine, served_by(config, name), sockets, here)
            for name, engine in local.items()
            if here
        }
        engines = Engines(supervisors, failed)
        try:
            async with beside([supervisor.run() for supervisor in engines.all], failed):
                yield engines
        finally:
            for supervisor in engines.all:
                supervisor.replica.close()
    finally:
        with suppress(OSError):  # a socket that could not be removed keeps its folder
            folder.rmdir()


@asynccontextmanager
async def composed(
    config: Config, local: Mapping[str, Sequence[Replica]], failed: asyncio.Future[None]
) -> AsyncIterator[Stack]:
    """The served models, over the engines started here (`local`, by name) and those elsewhere, which are watched."""
    stack = Stack(local, failed)
    try:
        stack.change(config)
        yield stack
    finally:
        await stack.close()


@asynccontextmanager
async def beside(jobs: Sequence[Coroutine[Any, Any, None]], failed: asyncio.Future[None]) -> AsyncIterator[None]:
    """Lets jobs run that never end by themselves; on leaving, ends them."""
    tasks = [watched(job, failed) for job in jobs]
    try:
        yield
    finally:
        await ended(tasks, failed)


def watched(job: Coroutine[Any, Any, None], failed: asyncio.Future[None]) -> asyncio.Task[None]:
    task = asyncio.create_task(job)
    task.add_done_callback(lambda task: report(task, failed))
    return task


async def ended(tasks: Sequence[asyncio.Task[None]], failed: asyncio.Future[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if failed.done():
        failed.exception()  # marks it as seen: it is raised when everything has ended


def served_by(config: Config, engine: str) -> list[str]:
    """The names of the models that an engine serves."""
    return [name for name, model in config.models.items() if model.engine == engine]


def served_models(config: Config, pools: Mapping[str, Pool], room: Room) -> dict[str, Served]:
    models: dict[str, Served] = {}
    limits = limits_of(config.gateway, room)
    for name, model in config.models.items():
        if config.engines[model.engine].kind == "scripted":
            models[name] = Answer(name, scripted(Script(**config.engines[model.engine].options)))
        else:
            models[name] = Relay(name, Route(pools[model.engine]), limits)
    for name, model in config.models.items():
        relay = models[name]
        if model.fallback and isinstance(relay, Relay):
            relay.fallback = models[model.fallback]
    return models


def limits_of(gateway: Gateway, room: Room) -> Limits:
    return Limits(gateway.first_byte_timeout_s, gateway.first_token_timeout_s, gateway.stall_timeout_s, room=room)


def scripted(script: Script) -> Scripted:
    return Scripted(script.answers, pace_s=script.pace_s)


def started(name: str, engine: Engine, served: list[str], sockets: Iterator[Path], here: Machine) -> list[Supervisor]:
    supervisors = []
    for number in range(engine.replicas):
        socket = next(sockets)
        launch = plan(f"{name}-{number}", engine, served or [name], here, socket)
        replica = Replica.behind(launch.name, socket)
        replica.names = launch.served
        supervisors.append(Supervisor(launch, engine.probe, engine.stop_s, replica))
    return supervisors


def report(task: asyncio.Task[None], failed: asyncio.Future[None]) -> None:
    """A job ends only by cancellation or by an error; the first error is everyone's."""
    error = None if task.cancelled() else task.exception()
    if error and not failed.done():
        failed.set_exception(error)
