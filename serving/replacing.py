"""Whole models: another version is started beside the one that serves, and switched to when all its replicas have
generated a token, and one with each adapter; the replicas before end what they do."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from penstock.errors import BadRequest, EngineError, NotFound, PenstockError, StateUnavailable
from registry.adapters import misfit
from registry.resolve import found, placed
from registry.versions import Version
from serving.engines import Generation, lora_for
from serving.loaded import Loaded
from serving.outcomes import FOR_NOW, Outcomes
from serving.served import Served
from serving.warming import warm_here

log = logging.getLogger(__name__)

READY_POLL_S = 0.1
GIVEN_UP = "its replicas were those of a canary, and have just been given up"


class NotFitting(BadRequest):
    """A base whose adapters cannot be served with it, until they move too."""


class Replacing:
    """`starting` are the versions that are, by engine."""

    def __init__(self, served: Served, loaded: Loaded, outcomes: Outcomes) -> None:
        self.served = served
        self.loaded = loaded
        self.outcomes = outcomes
        self.starting: dict[str, str] = {}

    async def fitting(self, engine: str, base: Version) -> Mapping[str, Version]:
        """The adapters that its models want. Raises NotFitting where one is not made for this base."""
        served, adapters = self.served, {}
        models = {model: served.config.models[model].adapter for model in served.adapters_at(engine)}
        for model, written in models.items():
            try:
                adapters[model] = await found(served.store, written or "")
            except NotFound as error:
                raise NotFitting(f"the adapter of the model {model}: {error.message}") from error
            if why := await misfit(served.store, adapters[model], base):
                raise NotFitting(
                    f"the adapter of the model {model} does not fit {base.reference} ({why}): move its alias to a "
                    "version that is made for it, and both are served"
                )
        return adapters

    async def replace(self, engine: str, version: Version) -> Mapping[str, Version]:
        """The engine's replicas are others, and its models' adapters, if they have any: these are returned. Raises
        NotFitting; BadRequest and StartError for what cannot be, FOR_NOW for what may yet be."""
        served = self.served
        self.starting[engine] = version.reference
        log.info("engines.%s: starting %s beside %s", engine, version.reference, served.bases[engine].reference)
        try:
            generation, wanted = await self._ready(engine, version)
            before = served.engines.take(generation)
        finally:
            self.starting.pop(engine, None)
        named = {model: each.reference for model, each in wanted.items()}
        self.loaded.begin_again(engine, named)
        served.switch({engine: version.reference}, named)
        self.retire(before)
        served.changed()
        return wanted

    async def _ready(self, engine: str, version: Version) -> tuple[Generation, Mapping[str, Version]]:
        """Replicas of that version, and the adapters that they have loaded, by model."""
        engines = self.served.engines
        tried = engines.tried.get(engine)  # by a canary that has done well
        if tried and tried.version != version.reference:
            tried = None

        def waits(why: str) -> None:
            written = self.served.config.engines[engine].model or ""
            self.outcomes.later(f"engines.{engine}", written, version, EngineError(why))

        generation = tried or await self.start(engine, version, waits)
        try:
            while tried and not all(replica.ready for replica in tried.replicas):  # one may have crashed since
                if engines.tried.get(engine) is not tried:
                    raise StateUnavailable(GIVEN_UP)
                waits(f"{', '.join(each.name for each in tried.replicas if not each.ready)}: not ready")
                await asyncio.sleep(READY_POLL_S)
            wanted = await self._warmed(generation, version)
        except BaseException:
            if generation is not tried:
                await engines.end(generation)
            raise
        if tried and engines.tried.get(engine) is not tried:
            raise StateUnavailable(GIVEN_UP)
        return generation, wanted

    async def start(self, engine: str, version: Version, waits: Callable[[str], None]) -> Generation:
        """Replicas of that version beside those that serve, with room for the adapters that its models want. Raises as
        `replace` does."""
        served = self.served
        base = await placed(served.artifacts, version)
        with adapters_at_fault():
            wanted = await self.fitting(engine, version)
            adapters = [await placed(served.artifacts, each) for each in wanted.values()]
            lora = lora_for(served.config, engine, adapters) or served.engines.current[engine].lora
        return await served.engines.next(served.config, engine, base, lora, waits)

    async def _warmed(self, generation: Generation, version: Version) -> Mapping[str, Version]:
        """The adapters that the engine's models want now, when a token of each has been generated there; which models
        those are, a reload may change meanwhile."""
        served = self.served
        while True:
            config = served.config
            with adapters_at_fault():
                wanted = await self.fitting(generation.engine, version)
                for each in wanted.values():
                    await warm_here(generation, await placed(served.artifacts, each), generation.replicas)
            if served.config is config:
                return wanted

    def retire(self, generation: Generation) -> None:
        """It ends when its last request has."""
        self.served.beside(self._retire(generation))

    async def _retire(self, generation: Generation) -> None:
        names = [replica.name for replica in generation.replicas]
        await self.served.hosts.left(names)
        await self.served.engines.end(generation)
        log.info("%s: ended, nothing runs there any more", ", ".join(names))


@contextmanager
def adapters_at_fault() -> Iterator[None]:
    """What is wrong with an adapter is no fault of its base, which has another chance when the adapter moves."""
    try:
        yield
    except (*FOR_NOW, NotFitting):
        raise
    except PenstockError as error:
        raise NotFitting(f"of its adapters: {error.message}") from error
