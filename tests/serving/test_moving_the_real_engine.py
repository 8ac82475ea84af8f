"""Adapters and a whole model that move under the real vLLM, behind `penstock serve`: nothing fails, nothing is cut."""

import asyncio
import json
import random
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.launch import DEMO
from penstock.references import Reference
from penstock.store import Store, opened
from registry.adding import About, add
from registry.aliases import all_aliases, move
from registry.artifacts import Artifacts, artifacts_at
from tests.conftest import Served, free_port, running
from tests.reliability.client import Caller, Said
from tests.serving.moved import VERSION

pytestmark = pytest.mark.anyio

PENSTOCK = str(Path(sys.executable).parent / "penstock")
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What can you do?"}],
    "temperature": 0,
    "max_tokens": 12,
}


def lora(folder: Path, seed: int, width: int = 192, rank: int = 4) -> Path:
    """A LoRA adapter of the bundled model, of random numbers that are large enough to be heard. Of another `width` it
    is none."""
    chance = random.Random(seed)
    sizes = {"q_proj": (width, width), "o_proj": (width, width)}
    tensors, data = {}, b""
    for layer in range(4):
        for name, (out, into) in sizes.items():
            for part, shape in (("lora_A", (rank, into)), ("lora_B", (out, rank))):
                numbers = [chance.gauss(0, 0.3) for _ in range(shape[0] * shape[1])]
                begin, data = len(data), data + struct.pack(f"<{len(numbers)}f", *numbers)
                where = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
                tensors[f"base_model.model.model.layers.{layer}.self_attn.{name}.{part}.weight"] = where
    head = json.dumps(tensors).encode()
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(sizes), "bias": "none"}
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**said, "base_model_name_or_path": "elsewhere"}))
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)
    return folder


def another(folder: Path) -> Path:
    """The bundled model once more, as a version of its own."""
    folder.mkdir()
    for file in DEMO.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_window_layers": 27}))
    return folder


async def point(store: Store, name: str, number: int) -> None:
    now = {each.alias: each.version for each in await all_aliases(store, name)}
    await move(store, "production", Reference(name, number), now.get("production"), "me")


async def filled(store: Store, artifacts: Artifacts, folder: Path) -> None:
    """demo@1 and demo@2; terse@1 and terse@2 for the first, terse@3 for the second; terse@4 has the wrong shapes, the
    weights of terse@5 are no safetensors that anything can be read from."""
    await add(store, artifacts, DEMO, About("demo"), "me")
    await add(store, artifacts, another(folder / "another"), About("demo"), "me")
    for seed, parent in ((1, "demo@1"), (2, "demo@1"), (3, "demo@2")):
        await add(store, artifacts, lora(folder / f"lora-{seed}", seed), About("terse", parent=parent), "me")
    wrong, torn = lora(folder / "wrong", 4, width=96), lora(folder / "torn", 5)
    weights = torn / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for made in (wrong, torn):
        await add(store, artifacts, made, About("terse", parent="demo@2"), "me")
    await point(store, "demo", 1)
    await point(store, "terse", 1)


async def ask(served: Served, model: str, **more: Any) -> Said:
    async with Caller(served.url) as caller:
        said = await caller.ask({**ASK, "model": model, **more})
        assert said.status == 200, said.body
        return said


async def until(served: Served, model: str, version: str, within_s: float) -> float:
    """How long it took until it answers."""
    began = time.monotonic()
    while (await ask(served, model)).headers[VERSION] != version:
        assert time.monotonic() < began + within_s, served.text[-4000:]
    return time.monotonic() - began


@asynccontextmanager
async def load(served: Served, answers: list[Said]) -> AsyncIterator[None]:
    over = asyncio.Event()

    async def call(model: str, stream: bool) -> None:
        while not over.is_set():
            answers.append(await ask(served, model, stream=stream))

    async with asyncio.TaskGroup() as tasks:
        for model in ("m", "terse"):
            for stream in (True, False):
                tasks.create_task(call(model, stream))
        yield
        over.set()


async def test_adapters_and_their_base_move_under_load(tmp_path: Path) -> None:
    tree = {
        "engines": {"base": {"model": "registry:demo@production", "options": {"max-model-len": 512}}},
        "models": {"m": {"engine": "base"}, "terse": {"engine": "base", "adapter": "registry:terse@production"}},
    }
    (tmp_path / "penstock.yaml").write_text(yaml.safe_dump(tree))
    port = free_port()
    command = [PENSTOCK, "serve", "--config", str(tmp_path / "penstock.yaml"), "--port", str(port)]
    async with opened(f"sqlite:///{tmp_path / 'penstock.db'}") as store:
        await filled(store, artifacts_at(str(tmp_path / "artifacts")), tmp_path)
        with running(command, port, tmp_path) as served:
            answers: list[Said] = []
            said = {"m": (await ask(served, "m")).json, "terse@1": (await ask(served, "terse")).json}
            async with load(served, answers):
                await point(store, "terse", 2)
                took_s = {"to terse@2": await until(served, "terse", "terse@2", 20)}
                await point(store, "terse", 1)
                took_s["back to terse@1"] = await until(served, "terse", "terse@1", 20)
                await point(store, "demo", 2)
                await point(store, "terse", 3)
                took_s["to demo@2 with terse@3"] = await until(served, "terse", "terse@3", 180)
                await until(served, "m", "demo@2", 1)
                for number in (4, 5):
                    await point(store, "terse", number)
                    await asyncio.to_thread(served.until, f"leads to terse@{number}, which is not served", 30)
                assert (await ask(served, "terse")).headers[VERSION] == "terse@3"
            said["terse@3"] = (await ask(served, "terse")).json
            print(took_s, len(answers))
            assert {each.headers[VERSION] for each in answers} == {"demo@1", "demo@2", "terse@1", "terse@2", "terse@3"}
            assert not [each for each in answers if each.error or not (each.done or each.json["usage"])]
            texts = {name: each["choices"][0]["message"]["content"] for name, each in said.items()}
            assert len(set(texts.values())) == 3, texts  # each of them is another model
            assert served.figure('penstock_model_version{model="terse",version="terse@3"}') == 1
            assert served.text.count("is served now") == 4
            assert "engine replaced" not in served.text
