"""Moves what is served to the versions that the configuration's references lead to now.

An adapter is put where its engines find it, warmed with a token on each, and switched to; the one before stays loaded,
for the way back. Another version of a whole model is started beside the one that serves, and switched to when all its
replicas have generated a token; the replicas before end what they do. What cannot be served leaves what is served as
it is, and log, metric and audit log say why. An engine and its adapters are looked at together: an adapter is of one
base, so that a base and its adapters can move at once, when the last of their aliases has.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from engine.replica import Replica
from penstock import audit, metrics
from penstock.config import Config
from penstock.errors import BadRequest, ConfigError, EngineError, NotFound, PenstockError, StateUnavailable
from penstock.references import Reference
from penstock.store import UNAVAILABLE, Store, reason
from registry.adapters import misfit, withdraw
from registry.artifacts import Artifacts, artifacts_at
from registry.resolve import found, is_registered, placed, refers
from registry.versions import Version
from serving.engines import Engines, Generation, lora_for
from serving.versions import Versions
from serving.warming import unload, warm_elsewhere, warm_here

log = logging.getLogger(__name__)

PREPARE_S = 60.0
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 30.0
READY_POLL_S = 0.1
LINGER_S = 2.5
KEPT = 2
"""How many of a model's adapters stay loaded: the present one, and the one before."""
GIVEN_UP = "its replicas were those of a canary, and have just been given up"
REPLACED = "its engine's replicas are others now"
FOR_NOW = (*UNAVAILABLE, EngineError, StateUnavailable, TimeoutError)
"""What may be over soon: it is tried again, and nothing is refused for it."""


class Hosts(Protocol):
    """The processes that answer requests."""

    def move(self, versions: Versions) -> None:
        """From now on they go by these versions, and by the engines' current replicas."""

    def apply(self, config: Config, versions: Versions) -> None:
        """From now on they go by this configuration and these versions; not for a moment by one without the other,
        which may ask an engine for another's adapter."""

    async def left(self, names: Collection[str]) -> None:
        """Returns when no request runs on any of these, as `Stack.leaving` names them."""

    def elsewhere(self, engine: str) -> Sequence[Replica] | None:
        """The replicas of an engine in `urls`; None where that is not known (yet)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """`for_good`: not to be tried again until the reference leads elsewhere."""

    version: str
    why: str
    for_good: bool = True


class Moving:
    """Each engine is settled by a task of its own, one step after another; the last of several moves counts."""

    def __init__(self, config: Config, store: Store, engines: Engines, hosts: Hosts) -> None:
        self.config = config
        self.store = store
        self.engines = engines
        self.hosts = hosts
        self.versions = engines.versions
        self._bases = {name: base.version for name, base in engines.found.bases.items()}
        self._given: set[tuple[str, str]] = set()  # adapters that an engine may have loaded
        self._warm: set[tuple[str, str]] = set()  # those of which all that could have generated a token
        self._loaded: dict[tuple[str, str], list[str]] = {}  # of each engine and model there, the present one last
        self._refused: dict[str, Refusal] = {}
        self._waiting: dict[str, str] = {}  # why what is tried again did not succeed
        self._starting: dict[str, str] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._unloading: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._tried: set[tuple[str, str]] = set()
        self._loading: list[tuple[str, str]] = []  # by several at once, it may be
        self._prepared: dict[str, str] = {}
        self.changed: Callable[[], None] = lambda: None  # what is served, or the configuration
        self._publish()

    @property
    def refers(self) -> bool:
        """Whether there is anything to follow."""
        return refers(self.config)

    @cached_property
    def artifacts(self) -> Artifacts:
        """Opened when there is need: without references there is none."""
        return artifacts_at(self.config.registry.artifacts)

    def moved(self, references: Collection[Reference]) -> None:
        """These aliases lead elsewhere now."""
        names = {str(each) for each in references}
        for engine in self.config.engines:
            if concerned := [what for what, reference in self._referred(engine).items() if reference in names]:
                self.look_again(engine, concerned)

    def look_again(self, engine: str, concerned: Collection[str] | None = None) -> None:
        """What was refused of these, or of all at this engine, has another chance."""
        for what in self._referred(engine) if concerned is None else concerned:
            if refusal := self._refused.get(what):
                self._refused[what] = replace(refusal, for_good=False)
        if engine not in self._news:
            self._news[engine] = asyncio.Event()
            self._beside(self._keep(engine))
        self._news[engine].set()

    def try_out(self, canaries: Mapping[str, Mapping[str, Any]]) -> None:
        """These served models have canaries now, whose versions can be asked."""
        self.versions = replace(self.versions, canaries=canaries)
        self.hosts.move(self.versions)

    async def try_adapter(self, engine: str, version: Version) -> None:
        """A canary's, which stays until `untry`. Raises BadRequest for what cannot be, FOR_NOW for what may yet be."""
        await self._load(engine, version)
        self._tried.add((engine, version.reference))

    def untry(self, name: str) -> None:
        """Wherever it is, also where a reload has left nobody who asks for it."""
        for engine in {there for there, each in self._given | self._tried if each == name}:
            self._tried.discard((engine, name))
            self._unload(engine)

    def is_warm(self, engine: str, name: str) -> bool:
        return (engine, name) in self._warm & self._tried

    def serves(self, engine: str) -> str:
        """The version of its model."""
        return self._bases[engine].reference

    def replicas(self, engine: str) -> Sequence[Replica] | None:
        """Those that requests come to; None where that is not known (yet)."""
        generation = self.engines.current.get(engine)
        return generation.replicas if generation else self.hosts.elsewhere(engine)

    def retire(self, generation: Generation) -> None:
        self._beside(self._retire(generation))

    async def prepare(self, config: Config) -> None:
        """Before a configuration is served: the adapters of its new models are warm. Raises ConfigError."""
        self._prepared = {}
        for name, model in config.models.items():
            if not model.adapter or is_the_same(self.config, config, name):
                continue
            try:
                async with asyncio.timeout(PREPARE_S):
                    version = await found(self.store, model.adapter)
                    await self._load(model.engine, version)
            except TimeoutError as error:
                why = f"its engine {model.engine} has not taken it within {PREPARE_S:g} s"
                raise ConfigError(f"models.{name}: {model.adapter}: {why}") from error
            except (*UNAVAILABLE, PenstockError) as error:
                raise ConfigError(f"models.{name}: {model.adapter}: {said(error)}") from error
            self._remember(model.engine, name, version.reference)
            self._prepared[name] = version.reference

    def apply(self, config: Config) -> None:
        """What `prepare` was asked about is served now."""
        before, self.config = self.config, config
        adapters = {**self.versions.adapters, **self._prepared}
        self.versions = replace(
            self.versions,
            adapters={name: version for name, version in adapters.items() if is_adapted(config, name)},
            canaries={
                name: canary for name, canary in self.versions.canaries.items() if is_the_same(before, config, name)
            },
        )
        self.hosts.apply(config, self.versions)
        self._publish()
        for what in {str(what) for (what,) in metrics.alias_refused.values} - self._all_referred():
            self._accept(what)
            metrics.alias_refused.forget(what)
        for engine, model in list(self._loaded):
            if not (is_adapted(config, model) and config.models[model].engine == engine):
                del self._loaded[engine, model]
                self._unload(engine)
        for name in config.engines:
            if self._referred(name) or name in self._news:
                self.look_again(name)
        self.changed()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            for name in self.config.engines:
                if self._referred(name):
                    self.look_again(name)
            await asyncio.Event().wait()
        finally:
            for job in list(self._jobs):
                job.cancel()
            await asyncio.gather(*self._jobs, return_exceptions=True)

    def _referred(self, engine: str) -> dict[str, str]:
        """The references of an engine and of its models, as NAME@ALIAS or NAME@NUMBER, by where they stand."""
        written = {f"models.{model}": self.config.models[model].adapter for model in self._adapters_at(engine)}
        if is_registered(self.config.engines[engine]):
            written[f"engines.{engine}"] = self.config.engines[engine].model
        return {what: str(Reference.of(each)) for what, each in written.items() if each}

    def _all_referred(self) -> set[str]:
        return {what for engine in self.config.engines for what in self._referred(engine)}

    def _adapters_at(self, engine: str) -> list[str]:
        return [name for name, model in self.config.models.items() if model.engine == engine and model.adapter]

    async def _keep(self, engine: str) -> None:
        """Settles an engine whenever there is news of it."""
        news, delay_s = self._news[engine], FIRST_RETRY_S
        while True:
            await news.wait()
            news.clear()
            step = asyncio.create_task(self._settle(engine))
            try:
                settled = await self._unless_overtaken(engine, step)
            except Exception as error:  # without this task the engine would never move again
                log.error("unexpected, in moving the engine %s", engine, exc_info=error)
                settled = False
            finally:
                step.cancel()
                await asyncio.wait([step])
            if settled:
                delay_s = FIRST_RETRY_S
            else:
                asyncio.get_running_loop().call_later(delay_s, news.set)
                delay_s = min(LONGEST_RETRY_S, 2 * delay_s)

    async def _unless_overtaken(self, engine: str, step: asyncio.Task[bool]) -> bool:
        """Whether it has settled. A start that leads where the alias no longer points is given up."""
        news = self._news[engine]
        while not step.done():
            told = asyncio.create_task(news.wait())
            try:
                await asyncio.wait([step, told], return_when=asyncio.FIRST_COMPLETED)
            finally:
                told.cancel()
            if step.done() or not news.is_set():
                continue
            if await self._still_wanted(engine):
                await asyncio.wait([step])  # what else has moved is looked at then
            else:
                log.info("engines.%s: given up for a later move: %s", engine, self._starting.get(engine, "an adapter"))
                return True  # there is news
        return step.result()

    async def _still_wanted(self, engine: str) -> bool:
        starting = self._starting.get(engine)
        if starting is None or engine not in self.config.engines:
            return False  # an adapter is loaded in a moment, again; and it may be waiting for what will never be
        try:
            return (await found(self.store, self.config.engines[engine].model or "")).reference == starting
        except (*UNAVAILABLE, PenstockError):
            return True

    async def _settle(self, engine: str) -> bool:
        """Whether all is served that can be; else it is to be tried again."""
        settled = True
        if engine not in self.config.engines:
            return True
        if is_registered(self.config.engines[engine]):
            settled = await self._settle_base(engine)
        for model in self._adapters_at(engine):
            settled = await self._settle_adapter(model) and settled
        if settled:
            self._unload(engine)
        return settled

    async def _settle_base(self, engine: str) -> bool:
        what, written = f"engines.{engine}", self.config.engines[engine].model or ""
        now, version = self._bases[engine], None
        before: Mapping[str, str] = self.versions.adapters
        adapters: Mapping[str, Version] = {}
        try:
            version = await found(self.store, written)
            if version.reference == now.reference:
                self._accept(what)
                return True
            refusal = self._refused.get(what)
            if refusal and refusal.for_good and refusal.version == version.reference:
                return True
            if version.kind == "adapter":
                raise BadRequest(f"{version.reference} is an adapter, not a whole model")
            await self.fitting(engine, version)
            if version.digest == now.digest:
                self._switch(engines={engine: version.reference})
            else:
                adapters = await self._replace(engine, version)
            self._bases[engine] = version
        except FOR_NOW as error:
            self._later(what, written, version, error)
            return False
        except NotFitting as error:
            self._refuse(what, written, version, error, for_good=False)
            return True
        except PenstockError as error:
            self._refuse(what, written, version, error)
            return True
        self._accepted(what, now, version)
        for model, adapter in adapters.items():
            if before.get(model) != adapter.reference:
                self._accepted(f"models.{model}", before.get(model), adapter)
        return True

    async def fitting(self, engine: str, base: Version) -> Mapping[str, Version]:
        """Those that its models want. Raises NotFitting where one is not made for this base."""
        adapters = {}
        for model in self._adapters_at(engine):
            try:
                adapters[model] = await found(self.store, self.config.models[model].adapter or "")
            except NotFound as error:
                raise NotFitting(f"the adapter of the model {model}: {error.message}") from error
            if why := await misfit(self.store, adapters[model], base):
                raise NotFitting(
                    f"the adapter of the model {model} does not fit {base.reference} ({why}): move its alias to a "
                    "version that is made for it, and both are served"
                )
        return adapters

    async def _replace(self, engine: str, version: Version) -> Mapping[str, Version]:
        """The engine's replicas are others, and its models' adapters, if they have any: these are returned."""
        self._starting[engine] = version.reference
        log.info("engines.%s: starting %s beside %s", engine, version.reference, self._bases[engine].reference)
        try:
            base = await placed(self.artifacts, version)
            before = self.engines.current[engine]
            with adapters_at_fault():
                wanted = await self.fitting(engine, version)
                adapters = [await placed(self.artifacts, each) for each in wanted.values()]
                lora = lora_for(self.config, engine, adapters) or before.lora
            tried = self.engines.tried.get(engine)  # by a canary that has done well
            if tried and tried.version != version.reference:
                tried = None
            generation = tried or await self.engines.next(self.config, engine, base, lora)
            try:
                while tried and not all(replica.ready for replica in tried.replicas):  # one may have crashed since
                    if self.engines.tried.get(engine) is not tried:
                        raise StateUnavailable(GIVEN_UP)
                    await asyncio.sleep(READY_POLL_S)
                with adapters_at_fault():
                    wanted = await self.fitting(engine, version)  # once more: that has taken its time
                    for each in wanted.values():
                        await warm_here(generation, await placed(self.artifacts, each), generation.replicas)
            except BaseException:
                if generation is not tried:
                    await self.engines.end(generation)
                raise
            if tried and self.engines.tried.get(engine) is not tried:
                raise StateUnavailable(GIVEN_UP)
            before = self.engines.take(generation)
        finally:
            self._starting.pop(engine, None)
        for there in [there for there in self._unloading if there[0] == engine]:
            self._unloading.pop(there).cancel()  # it ends with the replicas before
        named = {model: each.reference for model, each in wanted.items()}
        for known in (self._given, self._warm):
            known -= {each for each in known if each[0] == engine}
            known |= {(engine, name) for name in named.values()}
        for model, name in named.items():
            self._loaded[engine, model] = [name]
        self._switch({engine: version.reference}, {**self.versions.adapters, **named})
        self._beside(self._retire(before))
        self.changed()
        return wanted

    async def _retire(self, generation: Generation) -> None:
        """It ends when its last request has."""
        names = [replica.name for replica in generation.replicas]
        await self.hosts.left(names)
        await self.engines.end(generation)
        log.info("%s: ended, nothing runs there any more", ", ".join(names))

    async def _settle_adapter(self, model: str) -> bool:
        if not is_adapted(self.config, model):
            return True
        what, written = f"models.{model}", self.config.models[model].adapter or ""
        engine, version = self.config.models[model].engine, None
        now = self.versions.adapters.get(model)
        try:
            version = await found(self.store, written)
            refusal = self._refused.get(what)
            if refusal and refusal.for_good and refusal.version == version.reference:
                return True
            if now == version.reference and (engine, now) in self._warm:
                self._accept(what)
                return True
            await self._load(engine, version)
            if not is_adapted(self.config, model) or self.config.models[model].engine != engine:
                return True
            self._remember(engine, model, version.reference)
            self._switch(adapters={**self.versions.adapters, model: version.reference})
        except FOR_NOW as error:
            self._later(what, written, version, error)
            return False
        except PenstockError as error:
            self._refuse(what, written, version, error)
            return True
        if now == version.reference:
            self._accept(what)
        else:
            self._accepted(what, now, version)
        return True

    async def _load(self, engine: str, version: Version) -> None:
        """Into every replica that can be used, where nobody unloads it meanwhile. Raises BadRequest for what cannot be,
        FOR_NOW for what may yet be."""
        if why := await misfit(self.store, version, self._bases.get(engine)):
            raise BadRequest(why)
        here = (engine, version.reference)
        self._loading.append(here)
        try:
            if unloading := self._unloading.pop(here, None):
                unloading.cancel()
                await asyncio.wait([unloading])
            adapter = await placed(self.artifacts, version)
            replicas = await self._usable(engine)
            self._given.add(here)
            if generation := self.engines.current.get(engine):
                await warm_here(generation, adapter, replicas)
            else:
                await warm_elsewhere(engine, Path(self.config.registry.adapters or ""), adapter, replicas)
            if self.engines.current.get(engine) is not generation:
                raise StateUnavailable(REPLACED)
            self._warm.add(here)
        finally:
            self._loading.remove(here)

    async def _usable(self, engine: str) -> list[Replica]:
        """Waits for one. Others that are not, now, load an adapter when it is first asked for."""
        while True:
            replicas = self.replicas(engine)
            if replicas is None:
                raise BadRequest(f"the engine {engine} is not there yet: add it first, then models with adapters")
            if usable := [replica for replica in replicas if replica.usable]:
                return usable
            await asyncio.sleep(READY_POLL_S)

    def _remember(self, engine: str, model: str, name: str) -> None:
        now = self.versions.adapters.get(model)
        loaded = self._loaded.get((engine, model), [now] if now else [])
        self._loaded[engine, model] = [*(each for each in loaded if each != name), name]

    def _unload(self, engine: str) -> None:
        """What no model is asked for, what is among the last of none, and what nobody is loading or trying."""
        for there, model in self._loaded:
            if there == engine:
                self._loaded[there, model] = self._loaded[there, model][-KEPT:]
        kept = {name for (there, _), names in self._loaded.items() if there == engine for name in names}
        kept |= {name for there, name in (*self._tried, *self._loading) if there == engine}
        kept |= {self.versions.adapters.get(model, "") for model in self._adapters_at(engine)}
        for name in [name for there, name in self._given if there == engine and name not in kept]:
            self._given.discard((engine, name))
            self._warm.discard((engine, name))
            self._unloading[engine, name] = self._beside(self._forget(engine, name))

    async def _forget(self, engine: str, name: str) -> None:
        """Looked at twice: between two tries of a request nothing runs there either."""
        await self.hosts.left([f"{engine}/{name}"])
        await asyncio.sleep(LINGER_S)
        await self.hosts.left([f"{engine}/{name}"])
        if generation := self.engines.current.get(engine):  # elsewhere other gateways may still ask for it
            await unload(generation.replicas, name)
            if generation.lora:
                withdraw(generation.lora.folder, name)  # not in a thread, which would outlive a change of mind
        self._unloading.pop((engine, name), None)

    def _switch(self, engines: Mapping[str, str] | None = None, adapters: Mapping[str, str] | None = None) -> None:
        self.versions = replace(
            self.versions,
            engines={**self.versions.engines, **(engines or {})},
            adapters=self.versions.adapters if adapters is None else adapters,
        )
        self.hosts.move(self.versions)
        self._publish()

    def _publish(self) -> None:
        now = self.versions.of_models(self.config)
        for labels in set(metrics.model_version.values) - set(now.items()):
            metrics.model_version.forget(*labels)
        for model, version in now.items():
            metrics.model_version.set(1, model, version)

    def _accept(self, what: str) -> None:
        self._refused.pop(what, None)
        self._waiting.pop(what, None)
        self._show(what, 0)

    def _show(self, what: str, refused: int) -> None:
        """Nothing of what a reload has taken out meanwhile."""
        if what in self._all_referred():
            metrics.alias_refused.set(refused, what)

    def _accepted(self, what: str, before: Version | str | None, version: Version) -> None:
        self._accept(what)
        metrics.version_moves.inc(what, "served")
        was = before.reference if isinstance(before, Version) else before
        log.info("%s: %s is served now, before it was %s", what, version.reference, was)
        self._note("version.served", what, {"from": was, "to": version.reference})

    def _later(self, what: str, written: str, version: Version | None, error: BaseException) -> None:
        """It will be tried again, and was not refused."""
        if version:  # it is not the database that keeps silent
            self._show(what, 1)
        before, self._waiting[what] = self._waiting.get(what), said(error)
        if before != said(error):
            name = version.reference if version else "what nobody can say now"
            log.warning("%s: %s leads to %s, which will be tried again: %s", what, written, name, said(error))

    def _refuse(
        self, what: str, written: str, version: Version | None, error: BaseException, *, for_good: bool = True
    ) -> None:
        """Once for each version and reason."""
        name, why = version.reference if version else written, said(error)
        before, self._refused[what] = self._refused.get(what), Refusal(name, why, for_good)
        if before and (before.version, before.why) == (name, why):
            return
        self._show(what, 1)
        metrics.version_moves.inc(what, "refused")
        log.error("%s: %s leads to %s, which is not served; what was before goes on: %s", what, written, name, why)
        self._note("version.refused", what, {"reference": written, "version": name, "reason": why[:2000]})

    def _note(self, action: audit.Action, what: str, details: Mapping[str, Any]) -> None:
        """Beside what is done, which may be given up for a later move."""
        self._beside(self._noted(action, what, details))

    async def _noted(self, action: audit.Action, what: str, details: Mapping[str, Any]) -> None:
        try:
            await audit.note(self.store, audit.this_process(), action, what, **details)
        except UNAVAILABLE as error:
            log.error("the audit log does not say %s of %s: %s", action, what, reason(error))

    def _beside(self, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("unexpected, in moving to another version", exc_info=error)


class NotFitting(BadRequest):
    """A base whose adapters cannot be served with it, until they move too."""


@contextmanager
def adapters_at_fault() -> Iterator[None]:
    """What is wrong with an adapter is no fault of its base, which has another chance when the adapter moves."""
    try:
        yield
    except (*FOR_NOW, NotFitting):
        raise
    except PenstockError as error:
        raise NotFitting(f"of its adapters: {error.message}") from error


def is_the_same(before: Config, after: Config, model: str) -> bool:
    """Whether a model is still asked for where it was."""
    there = [(each.engine, each.adapter) for config in (before, after) if (each := config.models.get(model))]
    return len(there) == 2 and there[0] == there[1]


def is_adapted(config: Config, model: str) -> bool:
    return model in config.models and config.models[model].adapter is not None


def said(error: BaseException) -> str:
    return error.message if isinstance(error, PenstockError) else reason(error)
