"""`registry:NAME@ALIAS` in a configuration becomes a directory of this machine, where an engine finds its model."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from penstock.config import Config, Engine
from penstock.errors import BadRequest, PenstockError, StartError, StateUnavailable
from penstock.references import Reference, is_reference
from penstock.store import UNAVAILABLE, Store, opened, reason
from registry.adapters import misfit, rank_of
from registry.artifacts import Artifacts, artifacts_at
from registry.lineage import beneath
from registry.local_copy import Placed, local_copy
from registry.shapes import misshapen
from registry.versions import Version, find


@dataclass(frozen=True)
class Registered:
    """What of a configuration is in the registry: the models of engines started here, the adapters of served models,
    of which those `elsewhere` are at engines that are not started here."""

    bases: Mapping[str, Placed] = field(default_factory=dict)
    adapters: Mapping[str, Placed] = field(default_factory=dict)
    elsewhere: Sequence[str] = ()


async def registered(config: Config) -> Registered:
    """As the aliases point now. Raises StartError, naming the engine or the model, for what cannot be served."""
    if not refers(config):
        return Registered()
    async with opened(config.state.database) as store:
        artifacts = artifacts_at(config.registry.artifacts)
        bases = {
            name: await base_of(store, artifacts, name, engine)
            for name, engine in config.engines.items()
            if is_registered(engine)
        }
        adapters = {
            name: await adapter_of(store, artifacts, name, model.adapter, bases.get(model.engine))
            for name, model in config.models.items()
            if model.adapter
        }
    return Registered(bases, adapters, [name for name in adapters if config.engines[config.models[name].engine].urls])


def refers(config: Config) -> bool:
    return any(map(is_registered, config.engines.values())) or any(model.adapter for model in config.models.values())


def is_registered(engine: Engine) -> bool:
    return not engine.urls and is_reference(engine.model or "")


async def base_of(store: Store, artifacts: Artifacts, name: str, engine: Engine) -> Placed:
    """Raises StartError."""
    reference = engine.model or ""
    with told(f"engines.{name}: {reference}"):
        version = await found(store, reference)
        if version.kind == "adapter":
            under = await beneath(store, version)
            base = "its base" if under.kind == "adapter" else under.reference
            raise StartError(f"engines.{name}: {reference} is an adapter, not a whole model: serve {base}")
        return await placed(artifacts, version)


async def adapter_of(store: Store, artifacts: Artifacts, name: str, reference: str, base: Placed | None) -> Placed:
    """Raises StartError, also where it does not fit the base."""
    with told(f"models.{name}: {reference}"):
        version = await found(store, reference)
        if why := await misfit(store, version, base.version if base else None):
            raise BadRequest(why)
        adapter = await placed(artifacts, version)
        rank_of(adapter)
        if base and (why := await asyncio.to_thread(misshapen, adapter.folder, base.folder)):
            raise BadRequest(f"{version.reference} does not fit {base.version.reference}: {why}")
        return adapter


@contextmanager
def told(what: str) -> Iterator[None]:
    """Whatever is wrong ends the start, and says with what."""
    try:
        yield
    except UNAVAILABLE as error:
        raise StartError(f"{what} cannot be had: {reason(error)}") from error
    except StartError:
        raise
    except PenstockError as error:
        raise StartError(f"{what}: {error.message}") from error


async def found(store: Store, reference: str) -> Version:
    """Raises NotFound."""
    return await find(store, Reference.of(reference))


async def placed(artifacts: Artifacts, version: Version) -> Placed:
    """Its files in a directory that is not to be written to. Raises Damaged, StateUnavailable."""
    try:
        return Placed(version, await asyncio.to_thread(local_copy, artifacts, version.files))
    except OSError as error:
        raise StateUnavailable(f"the files of {version.reference} cannot be had: {reason(error)}") from error


async def resolve(store: Store, artifacts: Artifacts, reference: Reference) -> tuple[Version, Path]:
    """The version, and its files in a directory that is not to be written to. Raises NotFound, Damaged."""
    here = await placed(artifacts, await find(store, reference))
    return here.version, here.folder
