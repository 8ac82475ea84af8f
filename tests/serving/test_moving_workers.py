"""The same with several processes: the parent follows, the workers answer."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.sim import simulator
from penstock.config import Config
from registry.artifacts import Artifacts
from registry.local_copy import Placed
from registry.resolve import placed
from registry.versions import Version
from serving import loaded
from serving.engines import Engines, engines_here
from serving.hosts import followed
from serving.moving import Moving
from serving.server import Drain
from serving.stack import composed
from serving.workers import Workers, hold, reading_adapters
from tests.conftest import arguments, children
from tests.reliability.client import Caller
from tests.reliability.conftest import until
from tests.serving.moved import ASK, QUICK, VERSION, Registry, registry, simulated, tree, without_figures

pytestmark = pytest.mark.anyio


@pytest.fixture
async def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Registry]:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "h"))
    monkeypatch.setattr(loaded, "LINGER_S", 0.1)
    without_figures()
    async with registry(tmp_path) as known:
        await known.whole()
        await known.point("demo@production", 1)
        await known.adapter("terse", "demo@1")
        await known.point("terse@production", 1)
        yield known


class Gateway:
    """Two workers and their parent, which is this process."""

    def __init__(self, url: str, workers: Workers, engines: Engines, moving: Moving) -> None:
        self.url = url
        self.workers = workers
        self.engines = engines
        self.moving = moving
        self.versions: list[str] = []

    async def versions_of(self, model: str, times: int = 8) -> set[str]:
        """On connections of their own, so that either worker answers."""
        return {await self._version(model) for _ in range(times)}

    async def _version(self, model: str) -> str:
        async with Caller(self.url) as caller:
            said = await caller.ask({**ASK, "model": model, "stream": True})
            assert (said.status, said.error, said.done) == (200, None, True), said.body
            return said.headers[VERSION]

    async def until_all(self, model: str, version: str) -> None:
        async with asyncio.timeout(15):
            while await self.versions_of(model) != {version}:
                await asyncio.sleep(0.05)

    async def ready_replicas(self) -> set[tuple[str, ...]]:
        """Those that the figures of all processes name."""
        return {tuple(labels) for labels, _ in (await self.workers.figures())["penstock_engine_ready"]}

    @asynccontextmanager
    async def load(self, *models: str) -> AsyncIterator[None]:
        over = asyncio.Event()

        async def call(model: str) -> None:
            while not over.is_set():
                self.versions.append(await self._version(model))

        async with asyncio.TaskGroup() as tasks:
            for model in models:
                tasks.create_task(call(model))
                tasks.create_task(call(model))
            yield
            over.set()


@asynccontextmanager
async def with_workers(known: Registry, config: Config) -> AsyncIterator[Gateway]:
    with hold("127.0.0.1", 0) as holder:
        address = holder.getsockname()[:2]
        async with (
            engines_here(config, simulated) as engines,
            composed(reading_adapters(config), {}, engines.failed, engines.versions) as outside,
        ):
            workers = Workers(config, address, engines, outside=outside)
            async with followed(config, known.store, engines, workers) as moving:
                run = asyncio.create_task(workers.run())
                try:
                    async with asyncio.timeout(30):
                        await workers.until_ready()
                    yield Gateway(f"http://{address[0]}:{address[1]}", workers, engines, moving)
                    workers.drain(Drain())
                    await run
                finally:
                    run.cancel()
                    await asyncio.wait([run])


def configured(tmp_path: Path, **more: Any) -> Config:
    models = {"m": {"engine": "base"}, "terse": {"engine": "base", "adapter": "registry:terse@production"}}
    return Config(**tree(tmp_path, models=models, gateway={"workers": 2}, **more))


async def test_every_worker_moves_under_load_and_what_it_left_is_ended(known: Registry, tmp_path: Path) -> None:
    await known.whole(tokens=60)
    await known.adapter("terse", "demo@1")
    await known.adapter("terse", "demo@2")
    async with with_workers(known, configured(tmp_path)) as here:
        assert await here.versions_of("terse") == {"terse@1"}
        async with here.load("m", "terse"):
            await known.point("terse@production", 2)
            await here.until_all("terse", "terse@2")
            await known.point("demo@production", 2)
            await known.point("terse@production", 3)
            await here.until_all("m", "demo@2")
            assert await here.versions_of("terse") == {"terse@3"}
        assert {*here.versions} == {"demo@1", "demo@2", "terse@1", "terse@2", "terse@3"}
        await until(lambda: [replica.name for replica in here.engines.living] == ["base-1"], 20)
        assert await here.ready_replicas() == {("base", "1")}


async def test_a_reload_changes_a_models_engine_in_every_worker_and_no_request_fails(
    known: Registry, tmp_path: Path
) -> None:
    await known.adapter("sharp", "demo@1")
    await known.point("sharp@production", 1)
    config = configured(tmp_path)
    base = config.engines["base"]
    engines = {"base": base, "other": base.model_copy(update={"options": {"enable-lora": True}})}
    both = config.model_copy(update={"engines": engines})
    async with with_workers(known, both) as here, here.load("terse", "m"):
        for engine, adapter in (("other", "sharp"), ("base", "terse"), ("other", "sharp")):
            terse = both.models["terse"].model_copy(
                update={"engine": engine, "adapter": f"registry:{adapter}@production"}
            )
            changed = both.model_copy(update={"models": {**both.models, "terse": terse}})
            await here.moving.prepare(changed)
            here.moving.apply(changed)
            await here.until_all("terse", f"{adapter}@1")


async def test_a_worker_that_is_killed_comes_back_to_what_is_served_now(known: Registry, tmp_path: Path) -> None:
    await known.whole(tokens=60)
    await known.adapter("terse", "demo@2")
    async with with_workers(known, configured(tmp_path)) as here:
        await known.point("demo@production", 2)
        await known.point("terse@production", 2)
        await here.until_all("m", "demo@2")
        victims = [pid for pid in children(os.getpid()) if "serving.worker" in arguments(pid)]
        assert len(victims) == 2
        for victim in victims:
            os.kill(victim, signal.SIGKILL)

        def replaced() -> bool:
            there = {pid for pid in children(os.getpid()) if "serving.worker" in arguments(pid)}
            return len(there) == 2 and not there & {*victims}

        await until(replaced, 20)
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await here.versions_of("terse") == {"terse@2"}
                    break
                except OSError:  # nobody listens yet
                    await asyncio.sleep(0.1)
        assert await here.versions_of("m") == {"demo@2"}
        await until(lambda: len(here.engines.living) == 1, 20)  # those that were killed hold nothing


async def test_adapters_of_engines_elsewhere_are_warmed_by_the_parent(
    known: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any worker is ready."""

    async def slowly(artifacts: Artifacts, version: Version) -> Placed:
        await asyncio.sleep(4)  # workers start sooner
        return await placed(artifacts, version)

    monkeypatch.setattr(loaded, "placed", slowly)
    await known.adapter("terse", "demo@1")
    shared = tmp_path / "shared"
    shared.mkdir()
    async with simulator(model="base", root="/models/demo", adapters=shared) as sim:
        engines = {"base": {"urls": [sim.url], "probe": QUICK}}
        places = {"artifacts": str(tmp_path / "kept"), "adapters": str(shared)}
        async with with_workers(known, configured(tmp_path, engines=engines, registry=places)) as here:
            assert set(sim.model.adapters.loaded) == {"terse@1"}
            await here.until_all("terse", "terse@1")
            await known.point("terse@production", 2)
            await here.until_all("terse", "terse@2")
