"""Moves what is served to the versions that the configuration's references lead to now.

What cannot be served leaves what is served as it is. An engine and its adapters are looked at together: an adapter is
of one base, so that a base and its adapters can move at once, when the last of their aliases has.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress

from penstock.config import Config, Model
from penstock.errors import BadRequest, ConfigError, PenstockError
from penstock.references import Reference
from penstock.store import UNAVAILABLE, Store
from registry.resolve import found, is_registered
from registry.versions import Version
from serving.engines import Engines
from serving.loaded import Loaded, Replaced
from serving.outcomes import FOR_NOW, Outcomes, said
from serving.replacing import NotFitting, Replacing
from serving.served import Hosts, Served, is_adapted, is_the_same

log = logging.getLogger(__name__)

PREPARE_S = 60.0
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 30.0


class Moving:
    """Each engine is settled by a task of its own, one step after another; the last of several moves counts."""

    def __init__(self, config: Config, store: Store, engines: Engines, hosts: Hosts) -> None:
        self.served = Served(config, store, engines, hosts)
        self.loaded = Loaded(self.served)
        self.outcomes = Outcomes(self.served)
        self.replacing = Replacing(self.served, self.loaded, self.outcomes)
        self._news: dict[str, asyncio.Event] = {}
        self._prepared: dict[str, str] = {}

    def moved(self, references: Collection[Reference]) -> None:
        """These aliases lead elsewhere now."""
        names = {str(each) for each in references}
        for engine in self.served.config.engines:
            if concerned := [what for what, reference in self.served.referred(engine).items() if reference in names]:
                self.look_again(engine, concerned)

    def look_again(self, engine: str, concerned: Collection[str] | None = None) -> None:
        """What was refused of these, or of all at this engine, has another chance."""
        for what in self.served.referred(engine) if concerned is None else concerned:
            self.outcomes.another_chance(what)
        if engine not in self._news:
            self._news[engine] = asyncio.Event()
            self.served.beside(self._keep(engine))
        self._news[engine].set()

    async def prepare(self, config: Config) -> None:
        """Before a configuration is served: the adapters of its new models are warm, all of them when it returns.
        Raises ConfigError."""
        self._prepared = {}
        now = self.served.config
        new = {
            name: each for name, each in config.models.items() if each.adapter and not is_the_same(now, config, name)
        }
        while cold := [name for name, model in new.items() if not self._is_prepared(name, model.engine)]:
            for name in cold:
                with suppress(Replaced):
                    self._prepared[name] = await self._load(name, new[name])

    def _is_prepared(self, name: str, engine: str) -> bool:
        """Still: the engine's replicas may be others since."""
        return (engine, self._prepared.get(name, "")) in self.loaded.warm

    async def _load(self, name: str, model: Model) -> str:
        written = model.adapter or ""
        try:
            async with asyncio.timeout(PREPARE_S):
                version = await found(self.served.store, written)
                await self.loaded.load(model.engine, version)
        except Replaced:
            raise
        except TimeoutError as error:
            why = f"its engine {model.engine} has not taken it within {PREPARE_S:g} s"
            raise ConfigError(f"models.{name}: {written}: {why}") from error
        except (*UNAVAILABLE, PenstockError) as error:
            raise ConfigError(f"models.{name}: {written}: {said(error)}") from error
        return version.reference

    def apply(self, config: Config) -> None:
        """What `prepare` was asked about is served now."""
        for name, version in self._prepared.items():
            self.loaded.remember(config.models[name].engine, name, version)
        self.served.apply(config, self._prepared)
        self.outcomes.forget_others()
        self.loaded.forget_others()
        for name in config.engines:
            if self.served.referred(name) or name in self._news:
                self.look_again(name)
        self.served.changed()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            for name in self.served.config.engines:
                if self.served.referred(name):
                    self.look_again(name)
            await asyncio.Event().wait()
        finally:
            await self.served.close()

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
        news, others = self._news[engine], False
        while not step.done():
            told = asyncio.create_task(news.wait())
            try:
                await asyncio.wait([step, told], return_when=asyncio.FIRST_COMPLETED)
            finally:
                told.cancel()
            if step.done() or not news.is_set():
                continue
            news.clear()
            others = True
            if not await self._still_wanted(engine):
                starting = self.replacing.starting.get(engine, "an adapter")
                log.info("engines.%s: given up for a later move: %s", engine, starting)
                break
        if others:  # what else has moved is looked at then
            news.set()
        return not step.done() or step.result()

    async def _still_wanted(self, engine: str) -> bool:
        starting, served = self.replacing.starting.get(engine), self.served
        if starting is None or engine not in served.config.engines:
            return False  # an adapter is loaded in a moment, again; and it may be waiting for what will never be
        try:
            version = await found(served.store, served.config.engines[engine].model or "")
            if version.reference == starting:
                await self.replacing.fitting(engine, version)
            return version.reference == starting
        except NotFitting:
            return False  # an adapter has moved on to what serves, and need not wait for what can take a long time
        except (*UNAVAILABLE, PenstockError):
            return True

    async def _settle(self, engine: str) -> bool:
        """Whether all is served that can be; else it is to be tried again."""
        settled = True
        if engine not in self.served.config.engines:
            return True
        if is_registered(self.served.config.engines[engine]):
            settled = await self._settle_base(engine)
        for model in self.served.adapters_at(engine):
            settled = await self._try_adapter(model) and settled
        if settled:
            self.loaded.unload(engine)
        return settled

    async def _settle_base(self, engine: str) -> bool:
        what, written = f"engines.{engine}", self.served.config.engines[engine].model or ""
        now, version = self.served.bases[engine], None
        before: Mapping[str, str] = self.served.versions.adapters
        adapters: Mapping[str, Version] = {}
        try:
            version = await found(self.served.store, written)
            if version.reference == now.reference:
                self.outcomes.accept(what)
                return True
            if self.outcomes.is_refused(what, version):
                return True
            if version.kind == "adapter":
                raise BadRequest(f"{version.reference} is an adapter, not a whole model")
            await self.replacing.fitting(engine, version)
            if version.digest == now.digest:
                self.served.switch(engines={engine: version.reference})
            else:
                adapters = await self.replacing.replace(engine, version)
            self.served.bases[engine] = version
        except FOR_NOW as error:
            self.outcomes.later(what, written, version, error)
            return False
        except NotFitting as error:
            self.outcomes.refuse(what, written, version, error, for_good=False)
            return True
        except PenstockError as error:
            self.outcomes.refuse(what, written, version, error)
            return True
        self.outcomes.accepted(what, now, version)
        for model, adapter in adapters.items():
            if before.get(model) != adapter.reference:
                self.outcomes.accepted(f"models.{model}", before.get(model), adapter)
        return True

    async def _try_adapter(self, model: str) -> bool:
        """Nobody waits for it any more, however it ends: unless it is given up, to be begun again."""
        try:
            settled = await self._settle_adapter(model)
        except Exception:  # whatever it is: `_keep` tells of it and tries again
            self.served.not_waited_for(model)
            raise
        self.served.not_waited_for(model)
        return settled

    async def _settle_adapter(self, model: str) -> bool:
        served = self.served
        if not is_adapted(served.config, model):
            return True
        what, written = f"models.{model}", served.config.models[model].adapter or ""
        engine, version = served.config.models[model].engine, None
        now = served.versions.adapters.get(model)
        try:
            version = await found(served.store, written)
            if self.outcomes.is_refused(what, version):
                return True
            if now == version.reference and (engine, now) in self.loaded.warm:
                self.outcomes.accept(what)
                return True
            await self.loaded.load(engine, version)
            if not is_adapted(served.config, model) or served.config.models[model].engine != engine:
                return True
            self.loaded.remember(engine, model, version.reference)
            served.switch(adapters={model: version.reference})
        except FOR_NOW as error:
            self.outcomes.later(what, written, version, error)
            return False
        except PenstockError as error:
            self.outcomes.refuse(what, written, version, error)
            return True
        if now == version.reference:
            self.outcomes.accept(what)
        else:
            self.outcomes.accepted(what, now, version)
        return True
