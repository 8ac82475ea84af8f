"""The adapters that engines have loaded: put where they find them, warmed with a token on each, unloaded when nothing
runs there. The one before stays, for the way back, and that of a canary until it has ended."""

import asyncio
from pathlib import Path

from engine.replica import Replica
from penstock.errors import BadRequest, StateUnavailable
from registry.adapters import misfit, withdraw
from registry.resolve import placed
from registry.versions import Version
from serving.engines import Generation
from serving.served import Served, is_adapted
from serving.warming import unload, warm_elsewhere, warm_here

READY_POLL_S = 0.1
LINGER_S = 2.5
KEPT = 2
"""How many of a model's adapters stay loaded: the present one, and the one before."""


class Replaced(StateUnavailable):
    """The engine's replicas are others than those that an adapter was for."""


class Loaded:
    """An adapter at an engine is (engine, NAME@VERSION)."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.warm: set[tuple[str, str]] = set()  # those of which all replicas that could have generated a token
        self.loading: list[tuple[str, str]] = []  # by several at once, it may be
        self._given: set[tuple[str, str]] = set()  # those that an engine may have loaded
        self._of_models: dict[tuple[str, str], list[str]] = {}  # of each engine and model there, the present one last
        self._tried: set[tuple[str, str]] = set()
        self._unloading: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def load(self, engine: str, version: Version) -> None:
        """Into every replica that can be used, where nobody unloads it meanwhile. Raises BadRequest for what cannot be,
        FOR_NOW for what may yet be, of that Replaced."""
        served, generation = self.served, self.served.engines.current.get(engine)
        if why := await misfit(served.store, version, served.bases.get(engine)):
            raise BadRequest(why)
        here = (engine, version.reference)
        self.loading.append(here)
        try:
            if unloading := self._unloading.pop(here, None):
                unloading.cancel()
                await asyncio.wait([unloading])
            adapter = await placed(served.artifacts, version)
            replicas = await self._usable(engine)
            self._check(engine, generation)
            self._given.add(here)
            if generation:
                await warm_here(generation, adapter, replicas)
            else:
                await warm_elsewhere(engine, Path(served.config.registry.adapters or ""), adapter, replicas)
            self._check(engine, generation)
            self.warm.add(here)
        finally:
            self.loading.remove(here)

    def _check(self, engine: str, generation: Generation | None) -> None:
        """It may fit those that are there now no more."""
        if self.served.engines.current.get(engine) is not generation:
            raise Replaced(f"the replicas of {engine} are others now")

    async def _usable(self, engine: str) -> list[Replica]:
        """Waits for one. Others that are not, now, load an adapter when it is first asked for."""
        while True:
            replicas = self.served.replicas(engine)
            if replicas is None:
                raise BadRequest(f"the engine {engine} is not there yet: add it first, then models with adapters")
            if usable := [replica for replica in replicas if replica.usable]:
                return usable
            await asyncio.sleep(READY_POLL_S)

    async def try_out(self, engine: str, version: Version) -> None:
        """A canary's, which stays until `untry`. Raises as `load` does."""
        await self.load(engine, version)
        self._tried.add((engine, version.reference))

    def untry(self, name: str) -> None:
        """Wherever it is, also where a reload has left nobody who asks for it."""
        for engine in {there for there, each in self._given | self._tried if each == name}:
            self._tried.discard((engine, name))
            self.unload(engine)

    def is_tried(self, engine: str, name: str) -> bool:
        """Whether it can be asked for."""
        return (engine, name) in self.warm & self._tried

    def remember(self, engine: str, model: str, name: str) -> None:
        """It is the model's present one."""
        now = self.served.versions.adapters.get(model)
        loaded = self._of_models.get((engine, model), [now] if now else [])
        self._of_models[engine, model] = [*(each for each in loaded if each != name), name]

    def begin_again(self, engine: str, adapters: dict[str, str]) -> None:
        """The engine's replicas are others, which have loaded these, by model; the rest ends with those before."""
        for there in [there for there in self._unloading if there[0] == engine]:
            self._unloading.pop(there).cancel()
        for known in (self._given, self.warm):
            known -= {each for each in known if each[0] == engine}
            known |= {(engine, name) for name in adapters.values()}
        for model, name in adapters.items():
            self._of_models[engine, model] = [name]

    def forget_others(self) -> None:
        """Those of models that the configuration does not have there any more."""
        config = self.served.config
        for engine, model in list(self._of_models):
            if not (is_adapted(config, model) and config.models[model].engine == engine):
                del self._of_models[engine, model]
                self.unload(engine)

    def unload(self, engine: str) -> None:
        """What no model is asked for, what is among the last of none, and what nobody is loading or trying."""
        for there, model in self._of_models:
            if there == engine:
                self._of_models[there, model] = self._of_models[there, model][-KEPT:]
        kept = {name for (there, _), names in self._of_models.items() if there == engine for name in names}
        kept |= {name for there, name in (*self._tried, *self.loading) if there == engine}
        kept |= {self.served.versions.adapters.get(model, "") for model in self.served.adapters_at(engine)}
        for name in [name for there, name in self._given if there == engine and name not in kept]:
            self._given.discard((engine, name))
            self.warm.discard((engine, name))
            self._unloading[engine, name] = self.served.beside(self._leave(engine, name))

    async def _leave(self, engine: str, name: str) -> None:
        """Looked at twice: between two tries of a request nothing runs there either."""
        served = self.served
        await served.hosts.left([f"{engine}/{name}"])
        await asyncio.sleep(LINGER_S)
        await served.hosts.left([f"{engine}/{name}"])
        if generation := served.engines.current.get(engine):  # elsewhere other gateways may still ask for it
            await unload(generation.replicas, name)
            if generation.lora:
                withdraw(generation.lora.folder, name)  # not in a thread, which would outlive a change of mind
        self._unloading.pop((engine, name), None)
