"""A gateway whose models are in a registry, over engines that are simulated processes: one for each version."""

import asyncio
import json
import shlex
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from engine.launch import Launch, Lora
from engine.machine import Machine
from penstock import metrics
from penstock.config import Config, Engine
from penstock.references import Reference
from penstock.store import Store, opened
from registry.adding import About, add
from registry.aliases import all_aliases, move
from registry.artifacts import Artifacts, artifacts_at
from registry.versions import Version
from serving.app import Gateway
from serving.engines import Engines, engines_here
from serving.hosts import Alone, followed
from serving.moving import Moving
from serving.protocol import HotProtocol
from serving.server import Server, bind
from serving.stack import Stack, composed
from tests.registry.conftest import safetensors
from tests.reliability.client import Caller, Said

PENSTOCK = str(Path(sys.executable).parent / "penstock")
VERSION = "x-penstock-model-version"
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Where does the river go?"}]}
QUICK = {"interval_s": 0.2, "timeout_s": 2, "failures": 2, "start_timeout_s": 20}


def simulated(name: str, engine: Engine, served: Sequence[str], _: Machine, socket: Path, lora: Lora | None) -> Launch:
    """As `engine.launch.plan` does for vLLM. The folder's config.json says how it behaves: `tokens` is the mean length
    of an answer, so that versions differ; a `broken` one never starts, a `slow` one takes long to, and a `stubborn` one
    ends only when it is killed then; `memory` is a file that only one at a time can have."""
    said = json.loads((Path(engine.model or "") / "config.json").read_text())
    argv = [PENSTOCK, "sim", "--model", served[0], "--uds", str(socket), "--tokens", str(said.get("tokens", 32))]
    argv += ["--root", str(engine.model), "--itl-s", str(said.get("itl_s", 0.001))]
    if lora:
        argv += ["--adapters", str(lora.folder)]
    if said.get("broken"):
        argv = [sys.executable, "-m", "tests.engine.pretend", str(socket), "bad-model"]
    if said.get("slow"):
        trap = "trap '' TERM; " if said.get("stubborn") else ""
        argv = ["sh", "-c", f"{trap}sleep {said['slow']}; exec {shlex.join(argv)}"]
    if said.get("memory"):
        short = "{ echo 'torch.OutOfMemoryError: CUDA out of memory'; exit 1; }"
        argv = ["sh", "-c", f"exec 9>{said['memory']}; flock -n 9 || {short}; exec {shlex.join(argv)}"]
    body = {"model": served[0], "prompt": "a", "max_tokens": 1, "temperature": 0}
    return Launch(name, argv, {}, socket, "/v1/completions", body, served, str(engine.model), 16 if lora else 0)


@dataclass
class Registry:
    """Versions of `demo`, a whole model, and of adapters for it."""

    store: Store
    artifacts: Artifacts
    folder: Path
    made: int = 0

    async def whole(self, name: str = "demo", **config: Any) -> Version:
        """A new version; what is given is how it behaves, and what makes it another."""
        self.made += 1
        said = {"architectures": ["LlamaForCausalLM"], "number": self.made, **config}
        return await self._added(About(name), {"config.json": said})

    async def adapter(self, name: str, parent: str | None, **config: Any) -> Version:
        self.made += 1
        said = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "elsewhere", "number": self.made, **config}
        return await self._added(About(name, parent=parent), {"adapter_config.json": said}, "adapter_model.safetensors")

    async def _added(self, about: About, files: Mapping[str, Any], weights: str = "model.safetensors") -> Version:
        made = self.folder / f"made-{self.made}"
        made.mkdir(parents=True)
        for name, content in files.items():
            (made / name).write_text(json.dumps(content))
        (made / weights).write_bytes(safetensors(self.made))
        return await add(self.store, self.artifacts, made, about, "me")

    async def point(self, reference: str, number: int) -> None:
        """`demo@production` at a version."""
        name, _, alias = reference.partition("@")
        now = {each.alias: each.version for each in await all_aliases(self.store, name)}
        await move(self.store, alias, Reference(name, number), now.get(alias), "me")


@dataclass
class Moved:
    """What is running, and its clients."""

    registry: Registry
    url: str
    stack: Stack
    engines: Engines
    moving: Moving
    gateway: Gateway
    answers: list[Said] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    async def ask(self, model: str = "m", **more: Any) -> Said:
        async with Caller(self.url) as caller:
            return await caller.ask({**ASK, "model": model, **more})

    async def version(self, model: str = "m") -> str | None:
        """Which one answers."""
        said = await self.ask(model)
        assert said.status == 200, said.body
        return said.headers.get(VERSION)

    async def until_version(self, version: str, model: str = "m", within_s: float = 15) -> None:
        async with asyncio.timeout(within_s):
            while await self.version(model) != version:
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def load(self, *models: str, callers: int = 4) -> AsyncIterator[None]:
        """Streams and whole answers, one after another, while the block runs; then none has failed or was cut."""
        over = asyncio.Event()

        async def call(model: str, stream: bool) -> None:
            async with Caller(self.url) as caller:
                while not over.is_set():
                    self.answers.append(await caller.ask({**ASK, "model": model, "stream": stream}))

        async with asyncio.TaskGroup() as tasks:
            for number in range(callers):
                tasks.create_task(call((models or ("m",))[number % len(models or "m")], number % 4 < 2))
            yield
            over.set()
        for said in self.answers:
            assert (said.status, said.error) == (200, None), said.body
            assert said.done or said.json["choices"][0]["finish_reason"] == "stop"

    async def get(self, path: str) -> Any:
        async with httpx2.AsyncClient(base_url=self.url, trust_env=False) as client:
            return (await client.get(path)).json()

    def versions_answered_by(self, name: str) -> list[str]:
        return [version for version in self.versions_answered() if version.startswith(f"{name}@")]

    def versions_answered(self) -> list[str]:
        """In the order in which each was first seen."""
        return list(dict.fromkeys(said.headers.get(VERSION, "") for said in self.answers))


def without_figures() -> None:
    """Of the tests before, which had engines of the same names."""
    for gauge in (metrics.engine_ready, metrics.model_version, metrics.alias_refused):
        gauge.values.clear()


@asynccontextmanager
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    async with opened(f"sqlite:///{tmp_path / 'penstock.db'}") as store:
        yield Registry(store, artifacts_at(str(tmp_path / "kept")), tmp_path / "made")


def tree(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "state": {"database": f"sqlite:///{tmp_path / 'penstock.db'}"},
        "registry": {"artifacts": str(tmp_path / "kept")},
        "engines": {"base": {"model": "registry:demo@production", "probe": QUICK, "stop_s": 2}},
        "models": {"m": {"engine": "base"}},
        **more,
    }


@asynccontextmanager
async def moved(known: Registry, tree: dict[str, Any]) -> AsyncIterator[Moved]:
    """One process, ready."""
    config = Config(**tree)
    gateway = Gateway(config)
    server = Server(
        uvicorn.Config(
            gateway, http=HotProtocol, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1
        )
    )
    with bind("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with (
            engines_here(config, simulated) as engines,
            composed(config, engines.replicas, engines.failed, engines.versions) as stack,
            followed(config, known.store, engines, Alone(stack, engines, gateway.apply)) as moving,
            gateway.admission,
        ):
            gateway.stack = stack
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                async with asyncio.timeout(20):
                    await stack.until_ready()
                yield Moved(known, url, stack, engines, moving, gateway)
            finally:
                server.should_exit = True
                with suppress(asyncio.CancelledError):
                    await serving
