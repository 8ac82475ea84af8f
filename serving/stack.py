"""Where the parts meet: the configuration becomes engines that run and one served model per name."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from engine import machine, remote
from engine.attempt import Limits
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


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Stack]:
    """Starts what is configured; on leaving, drains and ends it. Raises StartError for what cannot start."""
    folder = run_dir()
    sockets = (folder / f"{number}.sock" for number in itertools.count())
    local = sum(engine.replicas for engine in config.engines.values() if engine.model and not engine.urls)
    here = machine.detect().shared_by(local) if local else None
    pools: dict[str, Pool] = {}
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    watchers: list[asyncio.Task[None]] = []
    try:
        for name, engine in config.engines.items():
            if engine.kind == "scripted":
                continue
            served = [model for model, options in config.models.items() if options.engine == name]
            watched = (
                started(name, engine, served, sockets, here)
                if here and not engine.urls
                else elsewhere(name, engine, served)
            )
            pools[name] = Pool(name, [replica for replica, _ in watched], config.gateway.engine_wait_s, engine.routing)
            for _, watcher in watched:
                task = asyncio.create_task(watcher.run(), name=f"watch {name}")
                task.add_done_callback(lambda task: report(task, failed))
                watchers.append(task)
        yield Stack(served_models(config, pools), pools, failed)
    finally:
        for task in watchers:
            task.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        for pool in pools.values():
            for replica in pool.replicas:
                replica.close()
        if failed.done():
            failed.exception()  # marks it as seen: `serve` raises it when everything has ended
        with suppress(OSError):  # a socket that could not be removed keeps its folder
            folder.rmdir()


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


def started(
    name: str, engine: Engine, served: list[str], sockets: Iterator[Path], here: Machine
) -> list[tuple[Replica, Supervisor]]:
    watched = []
    for number in range(engine.replicas):
        socket = next(sockets)
        launch = plan(f"{name}-{number}", engine, served or [name], here, socket)
        replica = Replica.behind(launch.name, socket)
        watched.append((replica, Supervisor(launch, engine.probe, engine.stop_s, replica)))
    return watched


def elsewhere(name: str, engine: Engine, served: list[str]) -> list[tuple[Replica, remote.Watcher]]:
    key = engine.api_key.get_secret_value() if engine.api_key else None
    watched = []
    for number, url in enumerate(engine.urls):
        replica = Replica.at(f"{name}-{number}", url, key)
        watched.append((replica, remote.Watcher(replica, engine.probe, engine.model, served)))
    return watched


def report(task: asyncio.Task[None], failed: asyncio.Future[None]) -> None:
    """A watcher ends only by cancellation or by an error; the first error is everyone's."""
    error = None if task.cancelled() else task.exception()
    if error and not failed.done():
        failed.set_exception(error)
