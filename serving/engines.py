"""The engines that are started here: each in generations, one for every version of its model that it serves.

A generation is a set of replicas with processes and sockets of their own. Usually there is one; while a model moves,
the next one starts beside it, and the last one ends what it does.
"""

import asyncio
import itertools
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine import machine
from engine.launch import Launch, Lora, normalised, plan
from engine.machine import Machine
from engine.replica import Replica
from engine.supervisor import Supervisor
from penstock.config import Config, Engine
from penstock.errors import NoMemory
from penstock.home import run_dir
from registry.adapters import offer, rank_of
from registry.local_copy import Placed
from registry.resolve import Registered, registered
from serving.versions import Versions

log = logging.getLogger(__name__)

READY_POLL_S = 0.05

Plan = Callable[[str, Engine, Sequence[str], Machine, Path, Lora | None], Launch]


@dataclass(eq=False)
class Generation:
    """An engine's replicas for one version of its model. `base` is that version, if it is of the registry; `lora` is
    what its adapters were planned for, None where it can have none."""

    engine: str
    supervisors: Sequence[Supervisor]
    base: Placed | None = None
    lora: Lora | None = None
    tasks: Sequence[asyncio.Task[None]] = field(default_factory=list)
    _ending: bool = False

    @property
    def replicas(self) -> list[Replica]:
        return [supervisor.replica for supervisor in self.supervisors]

    @property
    def version(self) -> str | None:
        return self.base.version.reference if self.base else None

    def offer(self, adapter: Placed) -> str:
        """Where its engines find it. Returns the name to ask for it."""
        assert self.lora
        return offer(adapter, self.lora.folder, self.supervisors[0].launch.model)

    def start(self) -> None:
        self.tasks = [asyncio.create_task(supervisor.run()) for supervisor in self.supervisors]

    async def until_ready(self) -> None:
        """Returns when all have generated a token. Raises StartError for the first that cannot."""
        while not all(replica.ready for replica in self.replicas):
            await asyncio.wait(self.tasks, timeout=READY_POLL_S, return_when=asyncio.FIRST_COMPLETED)
            for task in self.tasks:
                if task.done():
                    task.result()

    async def end(self) -> None:
        """The processes drain and end; their sockets, figures and adapters go with them. Asked again while it ends, it
        waits: a task that is cancelled twice leaves its process to itself."""
        if not self._ending:
            self._ending = True
            for task in self.tasks:
                task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        for replica in self.replicas:
            replica.close()
            replica.forget()
        if self.lora:
            await asyncio.to_thread(shutil.rmtree, self.lora.folder, True)


class Launcher:
    """Makes generations of engines: their sockets are in `folder`, and each replica has an equal share of `here`."""

    def __init__(self, folder: Path, here: Machine, planned: Plan = plan) -> None:
        self.folder = folder
        self.here = here
        self.planned = planned
        self._sockets = itertools.count()

    def generation(
        self, config: Config, name: str, base: Placed | None, lora: Lora | None, taken: Collection[str] = ()
    ) -> Generation:
        """One that is not started yet; its replicas have other numbers than those that are `taken`. Raises
        StartError."""
        engine = config.engines[name]
        if base:
            engine = engine.model_copy(update={"model": str(base.folder)})
        served = served_by(config, name) or [name]
        names = (each for number in itertools.count() if (each := f"{name}-{number}") not in taken)
        replicas = list(itertools.islice(names, engine.replicas))
        if lora:
            lora = replace(lora, folder=self.folder / f"{replicas[0]}.adapters")
        generation = Generation(name, [self._supervisor(each, engine, served, lora) for each in replicas], base, lora)
        if lora:
            lora.folder.mkdir(mode=0o700, exist_ok=True)
        return generation

    def _supervisor(self, name: str, engine: Engine, served: Sequence[str], lora: Lora | None) -> Supervisor:
        socket = self.folder / f"{next(self._sockets)}.sock"
        launch = self.planned(name, engine, served, self.here, socket, lora)
        replica = Replica.behind(launch.name, socket)
        replica.names = launch.served
        return Supervisor(launch, engine.probe, engine.stop_s, replica)


class Engines:
    """Those started here, by name: `current` are the generations that new requests go to, but for the share of those
    that are `tried`. `failed` ends with the first error that a supervisor cannot mend. `found` is what the
    configuration's references led to at the start."""

    def __init__(
        self,
        current: Mapping[str, Generation],
        failed: asyncio.Future[None],
        found: Registered | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        self.current = dict(current)
        self.tried: dict[str, Generation] = {}
        self.failed = failed
        self.found = found or Registered()
        self._launcher = launcher
        self._living = list(self.current.values())
        self._scarce = asyncio.Lock()

    @property
    def all(self) -> list[Supervisor]:
        """Those that requests come to."""
        asked = [*self.current.values(), *self.tried.values()]
        return [supervisor for generation in asked for supervisor in generation.supervisors]

    @property
    def replicas(self) -> dict[str, list[Replica]]:
        return {name: generation.replicas for name, generation in self.current.items()}

    @property
    def tried_replicas(self) -> dict[str, list[Replica]]:
        return {name: generation.replicas for name, generation in self.tried.items()}

    @property
    def living(self) -> list[Replica]:
        """Those that are coming or going, too."""
        return [replica for generation in self._living for replica in generation.replicas]

    @property
    def versions(self) -> Versions:
        """Those that are served from the start."""
        engines = {name: base.version.reference for name, base in self.found.bases.items()}
        adapters = {name: each.version.reference for name, each in self.found.adapters.items()}
        return Versions(engines, adapters, cold=self.found.elsewhere)

    def start(self) -> None:
        for generation in self.current.values():
            generation.start()
            self._trust(generation)

    def _trust(self, generation: Generation) -> None:
        """From now on what cannot be mended there ends everything."""
        for task in generation.tasks:
            task.add_done_callback(lambda task: report(task, self.failed))

    async def next(
        self, config: Config, name: str, base: Placed, lora: Lora | None, waits: Callable[[str], None]
    ) -> Generation:
        """The engine once more, with another version of its model: ready, and nobody goes there yet. One that finds too
        little memory while others come or go is started again when one of those has ended, however long that takes;
        `waits` is told so. Raises StartError; then nothing is left of it."""
        turn: AbstractAsyncContextManager[Any] = nullcontext()
        while True:
            async with turn:
                others = self._passing()
                try:
                    return await self._next(config, name, base, lora)
                except NoMemory:
                    if not (others := others | self._passing()):
                        raise
            names = ", ".join(sorted(replica.name for each in others for replica in each.replicas))
            waits(f"too little memory until one of {names} has ended")
            while others <= self._passing():
                await asyncio.sleep(READY_POLL_S)
            turn = self._scarce  # one at a time: two that took each other's memory would do so again

    def _passing(self) -> set[Generation]:
        """Those whose memory will be free without anybody's doing: they come, go, or are tried."""
        serving = self.current.values()
        return {each for each in self._living if each not in serving and not all(task.done() for task in each.tasks)}

    async def _next(self, config: Config, name: str, base: Placed, lora: Lora | None) -> Generation:
        assert self._launcher
        taken = {replica.name for replica in self.living}
        generation = self._launcher.generation(config, name, base, lora, taken)
        self._living.append(generation)
        try:
            generation.start()
            await generation.until_ready()
        except BaseException:
            await self.end(generation)
            raise
        return generation

    def take(self, generation: Generation) -> Generation:
        """It is the current one from now on. Returns the one before, which is the caller's to end."""
        before, self.current[generation.engine] = self.current[generation.engine], generation
        if self.tried.get(generation.engine) is generation:
            del self.tried[generation.engine]
        self._trust(generation)
        return before

    async def end(self, generation: Generation) -> None:
        """However often that is asked for."""
        try:
            await generation.end()
        finally:
            if generation in self._living and all(task.done() for task in generation.tasks):
                self._living.remove(generation)

    async def close(self) -> None:
        await asyncio.gather(*map(self.end, list(self._living)))
        seen(self.failed)


@asynccontextmanager
async def engines_here(config: Config, planned: Plan = plan) -> AsyncIterator[Engines]:
    """Starts the engines that run here; on leaving, drains and ends them. Raises StartError."""
    found = await registered(config)
    folder = run_dir()
    try:
        engines = await begun(config, found, folder, planned)
        try:
            engines.start()
            yield engines
        finally:
            await engines.close()
    finally:
        with suppress(OSError):  # a socket that could not be removed keeps its folder
            folder.rmdir()


async def begun(config: Config, found: Registered, folder: Path, planned: Plan) -> Engines:
    """The engines as they are at first, not started yet, their adapters where they will look for them."""
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    local = [name for name, engine in config.engines.items() if engine.model and not engine.urls]
    if not local:
        return Engines({}, failed, found)
    here = machine.detect().shared_by(sum(config.engines[name].replicas for name in local))
    launcher = Launcher(folder, here, planned)
    current = {}
    for name in local:
        adapters = [each for model, each in found.adapters.items() if config.models[model].engine == name]
        base = found.bases.get(name)
        current[name] = generation = launcher.generation(config, name, base, lora_for(config, name, adapters))
        for adapter in adapters:
            await asyncio.to_thread(generation.offer, adapter)
    return Engines(current, failed, found, launcher)


def lora_for(config: Config, engine: str, adapters: Iterable[Placed]) -> Lora | None:
    """What an engine must be able to do for these adapters, None where no model has one and no option wants any."""
    models = sum(model.engine == engine and model.adapter is not None for model in config.models.values())
    if not models and not normalised(config.engines[engine].options).get("enable-lora"):
        return None
    return Lora(Path(), max(1, models), max(map(rank_of, adapters), default=1))


def served_by(config: Config, engine: str) -> list[str]:
    """The names of the models that an engine itself serves, without those of its adapters."""
    return [name for name, model in config.models.items() if model.engine == engine and model.adapter is None]


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
    seen(failed)


def seen(failed: asyncio.Future[None]) -> None:
    """It is raised when everything has ended."""
    if failed.done():
        failed.exception()


def report(task: asyncio.Task[None], failed: asyncio.Future[None]) -> None:
    """A job ends only by cancellation or by an error; the first error is everyone's."""
    error = None if task.cancelled() else task.exception()
    if error and not failed.done():
        failed.set_exception(error)
