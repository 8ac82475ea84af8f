"""Versions that move while the configuration is another, too."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from penstock import metrics
from penstock.config import Config
from penstock.errors import ConfigError
from serving import loaded, replacing
from tests.reliability.conftest import until
from tests.serving.moved import Moved, Registry, moved
from tests.serving.test_moving import adapted, known, soon, unsurprised

__all__ = ["known", "soon", "unsurprised"]
pytestmark = pytest.mark.anyio

SHARP = {"engine": "base", "adapter": "registry:sharp@production"}


class Held:
    """Whatever warms an adapter at an engine does so, and goes on when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType, engine: str) -> None:
        self.there, self.go_on = asyncio.Event(), asyncio.Event()
        warm: Callable[..., Awaitable[None]] = module.warm_here

        async def held(generation: Any, *more: Any) -> None:
            await warm(generation, *more)
            if generation.engine == engine:
                self.there.set()
                await self.go_on.wait()

        monkeypatch.setattr(module, "warm_here", held)


async def two_bases(known: Registry) -> None:
    """`terse` has a version for demo@2 too, `sharp@production` is for demo@1 alone."""
    await known.whole()
    await known.adapter("terse", "demo@2")
    await known.adapter("sharp", "demo@1")
    await known.point("sharp@production", 1)


def with_another(tmp_path: Path) -> dict[str, Any]:
    """An engine that stays at demo@1."""
    tree = adapted(tmp_path)
    fixed = {"model": "registry:demo@1", "options": {"enable-lora": True}}
    tree["engines"]["other"] = tree["engines"]["base"] | fixed
    tree["models"]["n"] = {"engine": "other"}
    return tree


async def both_move(known: Registry) -> None:
    await known.point("terse@production", 2)
    await known.point("demo@production", 2)


async def reload(here: Moved, tree: dict[str, Any], **models: Any) -> None:
    config = Config(**{**tree, "models": {**tree["models"], **models}})
    await here.moving.prepare(config)
    here.moving.apply(config)


async def test_a_model_that_goes_to_another_engine_while_its_own_is_replaced_is_served_there(
    known: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two_bases(known)
    first = with_another(tmp_path)
    held = Held(monkeypatch, replacing, "base")
    async with moved(known, first) as here:
        await both_move(known)
        await until(held.there.is_set)
        await reload(here, first, terse=SHARP | {"engine": "other"})
        assert await here.version("terse") == "sharp@1"
        held.go_on.set()
        await here.until_version("demo@2")
        assert await here.version("terse") == "sharp@1"
        assert here.moving.served.versions.adapters == {"terse": "sharp@1"}


async def test_a_model_that_comes_while_its_engine_is_replaced_keeps_the_base_that_it_is_for(
    known: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await two_bases(known)
    first = adapted(tmp_path)
    held = Held(monkeypatch, replacing, "base")
    async with moved(known, first) as here:
        await both_move(known)
        await until(held.there.is_set)
        await reload(here, first, sharp=SHARP)
        held.go_on.set()
        await until(lambda: metrics.alias_refused.values.get(("engines.base",)) == 1)
        assert (await here.version(), await here.version("sharp")) == ("demo@1", "sharp@1")
        assert "the adapter of the model sharp does not fit demo@2" in caplog.text


async def test_what_a_reload_has_loaded_before_its_engine_was_replaced_is_looked_at_again(
    known: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two_bases(known)
    first = with_another(tmp_path)
    later = SHARP | {"engine": "other"}
    async with moved(known, first) as here:
        await until(lambda: ("base", "terse@1") in here.moving.loaded.warm)
        held = Held(monkeypatch, loaded, "other")
        reloading = asyncio.create_task(reload(here, first, sharp=SHARP, later=later))
        await until(held.there.is_set)  # sharp has been loaded; what nobody refers to yet may be unloaded at any moment
        await both_move(known)
        await here.until_version("demo@2")
        held.go_on.set()
        with pytest.raises(ConfigError, match=r"models.sharp: .*: sharp@1 is made for demo@1, and its engine serves d"):
            await reloading
        assert (await here.version("terse"), (await here.ask("sharp")).status) == ("terse@2", 404)


async def test_a_reload_waits_for_the_replicas_that_take_over_while_it_loads(
    known: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two_bases(known)
    first = adapted(tmp_path)
    async with moved(known, first) as here:
        await until(lambda: ("base", "terse@1") in here.moving.loaded.warm)
        held = Held(monkeypatch, loaded, "base")
        reloading = asyncio.create_task(reload(here, first, brief=first["models"]["terse"]))
        await until(held.there.is_set)
        await both_move(known)
        await here.until_version("demo@2")
        held.go_on.set()
        await reloading
        assert await here.version("brief") == "terse@2"
