"""Adapters offered to engines: whole folders of the right base, and what is no adapter of it."""

import json
import re
import struct
import uuid
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import BadRequest
from penstock.store import Store
from registry.adapters import misfit, offer, rank_of, withdraw
from registry.adding import About, add
from registry.artifacts import Artifacts
from registry.lineage import beneath
from registry.local_copy import Placed, local_copy
from registry.shapes import misshapen
from registry.versions import Version
from tests.registry.conftest import MakeModel, all_files, safetensors

pytestmark = pytest.mark.anyio


async def added(store: Store, folder: Artifacts, tmp_path: Path, parent: str | None = None, **config: Any) -> Version:
    made = tmp_path / f"adapter-{uuid.uuid4().hex}"
    made.mkdir()
    said = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "/where/it/was/trained", **config}
    (made / "adapter_config.json").write_text(json.dumps(said))
    (made / "adapter_model.safetensors").write_bytes(safetensors(1))
    return await add(store, folder, made, About("terse", parent=parent), "me")


def placed(folder: Artifacts, version: Version) -> Placed:
    return Placed(version, local_copy(folder, version.files))


async def test_an_engine_finds_an_adapter_as_one_of_its_own_model(
    store: Store, folder: Artifacts, tmp_path: Path
) -> None:
    adapter = placed(folder, await added(store, folder, tmp_path))
    before = all_files(adapter.folder)
    place = tmp_path / "place"
    place.mkdir()
    for base in ("/models/one", "/models/two", "/models/two"):
        assert offer(adapter, place, base) == "terse@1"
        assert [each.name for each in place.iterdir()] == ["terse@1"]
        said = json.loads((place / "terse@1" / "adapter_config.json").read_text())
        assert said == {"peft_type": "LORA", "r": 8, "base_model_name_or_path": base}
        assert (place / "terse@1" / "adapter_model.safetensors").read_bytes() == safetensors(1)
    assert all_files(adapter.folder) == before  # which is the kept file itself
    withdraw(place, "terse@1")
    withdraw(place, "terse@1")
    assert not list(place.iterdir())


async def test_an_adapter_fits_the_files_it_was_made_for(
    store: Store, folder: Artifacts, make_model: MakeModel, tmp_path: Path
) -> None:
    one, two = make_model(1), make_model(2)
    first, again, other = [await add(store, folder, each, About("demo"), "me") for each in (one, one, two)]
    adapter = await added(store, folder, tmp_path, "demo@1")
    assert await misfit(store, adapter, first) == ""
    assert await misfit(store, adapter, again) == ""
    assert await misfit(store, adapter, None) == ""
    assert await misfit(store, adapter, other) == "terse@1 is made for demo@1, and its engine serves demo@3"
    assert "with --parent, which must be demo@1" in await misfit(store, await added(store, folder, tmp_path), first)
    assert "demo@1 is no adapter but a full model" in await misfit(store, first, first)


async def test_an_adapter_of_an_adapter_fits_the_model_beneath_both(
    store: Store, folder: Artifacts, make_model: MakeModel, tmp_path: Path
) -> None:
    base, other = [await add(store, folder, make_model(seed), About("demo"), "me") for seed in (1, 2)]
    first = await added(store, folder, tmp_path, base.reference)
    second = await added(store, folder, tmp_path, first.reference, r=4)
    assert (await beneath(store, second)).reference == "demo@1"
    assert await misfit(store, second, base) == ""
    assert await misfit(store, second, other) == "terse@2 is made for demo@1, and its engine serves demo@2"
    lost = await added(store, folder, tmp_path, (await added(store, folder, tmp_path, r=2)).reference, r=3)
    assert "terse@3 does not say which model it was made for" in await misfit(store, lost, base)


@pytest.mark.parametrize(
    ("config", "rank"),
    [
        ({}, 8),
        ({"rank_pattern": {"q_proj": 32, "v_proj": 4}}, 32),
        ({"peft_type": "PREFIX_TUNING"}, "is a PREFIX_TUNING adapter, and vLLM serves LoRA alone"),
        (
            {"r": "8"},
            "terse@1: adapter_config.json must have a rank `r`, .* whole numbers above 0; add the adapter again",
        ),
        ({"r": None}, "must have a rank `r`"),
        ({"rank_pattern": [8]}, "and in `rank_pattern` ranks, that are whole"),
        ({"rank_pattern": "q_proj"}, "and in `rank_pattern` ranks, that are whole"),
    ],
)
async def test_an_adapters_rank_is_its_largest(
    store: Store, folder: Artifacts, tmp_path: Path, config: dict[str, Any], rank: int | str
) -> None:
    adapter = placed(folder, await added(store, folder, tmp_path, **config))
    if isinstance(rank, int):
        assert rank_of(adapter) == rank
    else:
        with pytest.raises(BadRequest, match=rank):
            rank_of(adapter)


async def test_a_configuration_that_cannot_be_read_is_told_with_its_version(
    store: Store, folder: Artifacts, tmp_path: Path
) -> None:
    (tmp_path / "damaged").mkdir()
    damaged = Placed(await added(store, folder, tmp_path), tmp_path / "damaged")
    for said in (b"[8]", b"{", b"\xff", b"[" * 100_000):
        (damaged.folder / "adapter_config.json").write_bytes(said)
        for read in (rank_of, lambda adapter: offer(adapter, tmp_path, "/models/one")):
            with pytest.raises(BadRequest, match=r"terse@1: adapter_config.json is no.*; add the adapter again"):
                read(damaged)


def tensors(file: Path, **shapes: list[int]) -> Path:
    """A safetensors file without its numbers, which nobody here reads."""
    head = json.dumps(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    )
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(struct.pack("<Q", len(head)) + head.encode())
    return file.parent


@pytest.mark.parametrize(
    ("part", "shape", "why"),
    [
        ("lora_A", [4, 16], ""),
        ("lora_B", [32, 4], ""),
        ("lora_A", [4, 8], r"lora_A.weight is of shape \[4, 8\], and the model's own weight of \[32, 16\]"),
        ("lora_B", [64, 4], r"lora_B.weight is of shape \[64, 4\]"),
        ("lora_A", [4], r"lora_A.weight is of shape \[4\]"),
        ("lora_B", [], r"lora_B.weight is of shape \[\]"),
    ],
)
def test_an_adapters_matrices_must_be_of_the_models_size(tmp_path: Path, part: str, shape: list[int], why: str) -> None:
    tensors(tmp_path / "base" / "model-1.safetensors", **{"model.norm.weight": [16]})
    base = tensors(tmp_path / "base" / "model-2.safetensors", **{"model.q.weight": [32, 16]})
    names = {f"base_model.model.model.q.{part}.weight": shape, "base_model.model.model.other.lora_A.weight": [4, 9]}
    adapter = tensors(tmp_path / "adapter" / "adapter_model.safetensors", **names)
    found = misshapen(adapter, base)
    assert re.search(why, found) if why else found == ""


def headed(head: bytes) -> bytes:
    return struct.pack("<Q", len(head)) + head


@pytest.mark.parametrize(
    "content",
    [
        b"weights",
        b"",
        struct.pack("<Q", 2**40),
        headed(b"{"),
        headed(b"[]"),
        headed(b"[" * 100_000),
        headed(b'{"w": 1}'),
        headed(b'{"w": {"dtype": "F32"}}'),
        headed(b'{"w": {"shape": "16"}}'),
        headed(b'{"w": {"shape": [1.5]}}'),
        headed(b'{"w": {"shape": null}}'),
    ],
)
def test_what_is_no_safetensors_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(BadRequest, match=r"adapter_model.safetensors is no safetensors file: write it again"):
        misshapen(tmp_path, tmp_path / "none")
