"""Small models of real files, a store of each kind, and the places where files can be kept."""

import json
import struct
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from penstock.store import Store, opened
from registry.artifacts import Artifacts, artifacts_at
from tests.conftest import REPOSITORY

DEMO = REPOSITORY / "recipes" / "demo" / "model"
MakeModel = Callable[..., Path]


def safetensors(seed: int = 0) -> bytes:
    """One tensor of four numbers."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<4f", *(seed + number for number in range(4)))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with opened(database) as store:
        yield store


@pytest.fixture(params=["folder", "file", "memory"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artifacts:
    places = {
        "folder": str(tmp_path / "kept"),
        "file": f"file://{tmp_path / 'kept'}",
        "memory": f"memory://{uuid.uuid4().hex}/kept",
    }
    return artifacts_at(places[request.param])


@pytest.fixture
def folder(tmp_path: Path) -> Artifacts:
    return artifacts_at(str(tmp_path / "kept"))


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """A directory with weights, a configuration, a tokenizer, and whatever is given: {path: bytes or a JSON value}."""

    def make(seed: int = 0, /, **files: object) -> Path:
        made = tmp_path / f"model-{uuid.uuid4().hex[:8]}"
        usual: dict[str, object] = {
            "config.json": {"architectures": ["LlamaForCausalLM"]},
            "model.safetensors": safetensors(seed),
            "tokenizer.json": {"model": {"vocab": {"a": 0}}},
            "tokenizer_config.json": {"eos_token": "</s>", "chat_template": "{{ messages }}"},
        }
        for path, content in (usual | files.pop("files", {}) | files).items():  # type: ignore[operator]
            file = made / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if content is not None:
                file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return made

    return make


def all_files(folder: Path) -> dict[str, bytes]:
    """Relative path -> content."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
