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
from engine.scripted import Scripted
from engine.supervisor import Supervisor
from penstock.config import Config, Engine, Gateway, Script
from penstock.home import run_dir
from serving.answer import Answer
from serving.relay import Relay

Served = Relay | Answer


@dataclass(frozen=True)
class Stack:
    """`failed` ends with the first error that an engine's watcher cannot mend."""

    models: dict[str, Served]
    pools: Mapping[str, Pool]
    failed: asyncio.Future[None]

    @property
    def ready(self) -> bool:
        return all(pool.ready for pool in self.pools.values())

    async def until_ready(self) -> None:
        """Of every engine at least one replica."""
        for pool in self.pools.values():
            await pool.until_ready()


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
    local = {name: engine for name, engine in config.engines.items() if engine.model and not engine.urls}
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
    pools = {
        name: Pool(name, local.get(name, ()), config.gateway.engine_wait_s, engine.routing)
        for name, engine in config.engines.items()
        if engine.kind != "scripted"
    }
    jobs = [
        Elsewhere(engine, served_by(config, name), pools[name]).run()
        for name, engine in config.engines.items()
        if engine.urls
    ]
    jobs += [
        keep_holdings(replica)
        for name, replicas in local.items()
        if config.engines[name].routing.kv_events
        for replica in replicas
    ]
    async with beside(jobs, failed):
        yield Stack(served_models(config, pools), pools, failed)


@asynccontextmanager
async def beside(jobs: Sequence[Coroutine[Any, Any, None]], failed: asyncio.Future[None]) -> AsyncIterator[None]:
    """Lets jobs run that never end by themselves; on leaving, ends them."""
    tasks = [asyncio.create_task(job) for job in jobs]
    for task in tasks:
        task.add_done_callback(lambda task: report(task, failed))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if failed.done():
            failed.exception()  # marks it as seen: it is raised when everything has ended


def served_by(config: Config, engine: str) -> list[str]:
    """The names of the models that an engine serves."""
    return [name for name, model in config.models.items() if model.engine == engine]


def served_models(config: Config, pools: Mapping[str, Pool]) -> dict[str, Served]:
    models: dict[str, Served] = {}
    limits = limits_of(config.gateway)
    for name, model in config.models.items():
        if config.engines[model.engine].kind == "scripted":
            models[name] = Answer(name, scripted(Script(**config.engines[model.engine].options)))
        else:
            models[name] = Relay(name, pools[model.engine], limits)
    for name, model in config.models.items():
        relay = models[name]
        if model.fallback and isinstance(relay, Relay):
            relay.fallback = models[model.fallback]
    return models


def limits_of(gateway: Gateway) -> Limits:
    return Limits(gateway.first_byte_timeout_s, gateway.first_token_timeout_s, gateway.stall_timeout_s)


def scripted(script: Script) -> Scripted:
    return Scripted(script.answers, pace_s=script.pace_s)


def started(name: str, engine: Engine, served: list[str], sockets: Iterator[Path], here: Machine) -> list[Supervisor]:
    supervisors = []
    for number in range(engine.replicas):
        socket = next(sockets)
        launch = plan(f"{name}-{number}", engine, served or [name], here, socket)
        replica = Replica.behind(launch.name, socket)
        supervisors.append(Supervisor(launch, engine.probe, engine.stop_s, replica))
    return supervisors


def report(task: asyncio.Task[None], failed: asyncio.Future[None]) -> None:
    """A job ends only by cancellation or by an error; the first error is everyone's."""
    error = None if task.cancelled() else task.exception()
    if error and not failed.done():
        failed.set_exception(error)
