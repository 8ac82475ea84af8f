"""`registry:NAME@ALIAS` in a configuration becomes a directory of this machine, where an engine finds its model."""

import asyncio
from pathlib import Path

from penstock.config import Config, Engine
from penstock.errors import PenstockError, StartError, StateUnavailable
from penstock.references import Reference, is_reference
from penstock.store import UNAVAILABLE, Store, opened, reason
from registry.artifacts import Artifacts, artifacts_at
from registry.local_copy import local_copy
from registry.versions import Version, find


async def with_local_models(config: Config, engines: dict[str, Engine]) -> dict[str, Engine]:
    """The same engines, with directories for registered models. Raises StartError, naming the engine."""
    if not any(is_reference(engine.model or "") for engine in engines.values()):
        return engines
    async with opened(config.state.database) as store:
        artifacts = artifacts_at(config.registry.artifacts)
        return {name: await with_local_model(store, artifacts, name, engine) for name, engine in engines.items()}


async def with_local_model(store: Store, artifacts: Artifacts, name: str, engine: Engine) -> Engine:
    if not is_reference(engine.model or ""):
        return engine
    try:
        version, folder = await resolve(store, artifacts, Reference.of(engine.model or ""))
    except UNAVAILABLE as error:
        raise StartError(f"engines.{name}: {engine.model} cannot be had: {reason(error)}") from error
    except PenstockError as error:
        raise StartError(f"engines.{name}: {engine.model}: {error.message}") from error
    if version.kind == "adapter":
        base = version.parent or "its base"
        raise StartError(f"engines.{name}: {engine.model} is an adapter, not a whole model: serve {base}")
    return engine.model_copy(update={"model": str(folder)})


async def resolve(store: Store, artifacts: Artifacts, reference: Reference) -> tuple[Version, Path]:
    """The version, and its files in a directory that is not to be written to. Raises NotFound, Damaged."""
    version = await find(store, reference)
    try:
        return version, await asyncio.to_thread(local_copy, artifacts, version.files)
    except OSError as error:
        raise StateUnavailable(f"the files of {version.reference} cannot be had: {reason(error)}") from error
