"""What is served now: the configuration, the versions, the replicas. Whatever moves them moves this."""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

from engine.replica import Replica
from penstock import metrics
from penstock.config import Config
from penstock.references import Reference
from penstock.store import Store
from registry.artifacts import Artifacts, artifacts_at
from registry.resolve import is_registered, refers
from serving.engines import Engines
from serving.versions import Versions

log = logging.getLogger(__name__)


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


class Served:
    """`bases` are the versions of engines' models; `changed` is called when those or the configuration are others."""

    def __init__(self, config: Config, store: Store, engines: Engines, hosts: Hosts) -> None:
        self.config = config
        self.store = store
        self.engines = engines
        self.hosts = hosts
        self.versions = engines.versions
        self.bases = {name: base.version for name, base in engines.found.bases.items()}
        self.changed: Callable[[], None] = lambda: None
        self._jobs: set[asyncio.Task[None]] = set()
        self._publish()

    @property
    def refers(self) -> bool:
        """Whether there is anything to follow."""
        return refers(self.config)

    @cached_property
    def artifacts(self) -> Artifacts:
        """Opened when there is need: without references there is none."""
        return artifacts_at(self.config.registry.artifacts)

    def referred(self, engine: str) -> dict[str, str]:
        """The references of an engine and of its models, as NAME@ALIAS or NAME@NUMBER, by where they stand."""
        written = {f"models.{model}": self.config.models[model].adapter for model in self.adapters_at(engine)}
        if is_registered(self.config.engines[engine]):
            written[f"engines.{engine}"] = self.config.engines[engine].model
        return {what: str(Reference.of(each)) for what, each in written.items() if each}

    def all_referred(self) -> set[str]:
        return {what for engine in self.config.engines for what in self.referred(engine)}

    def adapters_at(self, engine: str) -> list[str]:
        """The models that have one."""
        return [name for name, model in self.config.models.items() if model.engine == engine and model.adapter]

    def replicas(self, engine: str) -> Sequence[Replica] | None:
        """Those that requests come to; None where that is not known (yet)."""
        generation = self.engines.current.get(engine)
        return generation.replicas if generation else self.hosts.elsewhere(engine)

    def switch(self, engines: Mapping[str, str] | None = None, adapters: Mapping[str, str] | None = None) -> None:
        """These engines serve these versions, and these models these adapters; the others what they did."""
        self.versions = replace(
            self.versions,
            engines={**self.versions.engines, **(engines or {})},
            adapters={**self.versions.adapters, **(adapters or {})},
            cold=[name for name in self.versions.cold if name not in (adapters or {})],
        )
        self.hosts.move(self.versions)
        self._publish()

    def not_waited_for(self, model: str) -> None:
        """Its adapter is there, or cannot be had, at least not now: the other models need not wait for it."""
        if model in self.versions.cold:
            self.versions = replace(self.versions, cold=[name for name in self.versions.cold if name != model])
            self.hosts.move(self.versions)

    def try_out(self, canaries: Mapping[str, Mapping[str, Any]]) -> None:
        """These served models have canaries now, whose versions can be asked."""
        self.versions = replace(self.versions, canaries=canaries)
        self.hosts.move(self.versions)

    def apply(self, config: Config, adapters: Mapping[str, str]) -> None:
        """Another configuration, for whose new models these adapters are ready."""
        before, self.config = self.config, config
        known = {**self.versions.adapters, **adapters}
        self.versions = replace(
            self.versions,
            adapters={name: version for name, version in known.items() if is_adapted(config, name)},
            cold=[name for name in self.versions.cold if is_the_same(before, config, name)],
            canaries={
                name: canary for name, canary in self.versions.canaries.items() if is_the_same(before, config, name)
            },
        )
        self.hosts.apply(config, self.versions)
        self._publish()

    def _publish(self) -> None:
        now = self.versions.of_models(self.config)
        for labels in set(metrics.model_version.values) - set(now.items()):
            metrics.model_version.forget(*labels)
        for model, version in now.items():
            metrics.model_version.set(1, model, version)

    def beside(self, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Goes on when who began it is given up for a later move, until `close`."""
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("unexpected, in moving to another version", exc_info=error)

    async def close(self) -> None:
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)


def is_the_same(before: Config, after: Config, model: str) -> bool:
    """Whether a model is still asked for where it was."""
    there = [(each.engine, each.adapter) for config in (before, after) if (each := config.models.get(model))]
    return len(there) == 2 and there[0] == there[1]


def is_adapted(config: Config, model: str) -> bool:
    return model in config.models and config.models[model].adapter is not None
