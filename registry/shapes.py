"""Whether an adapter's matrices fit the model's, by the heads of their files: an engine may take what does not, and
answer nonsense or end."""

import json
import struct
from operator import index
from pathlib import Path
from typing import Any

from penstock.errors import BadRequest

LONGEST_HEAD_BYTES = 100 * 2**20
PREFIX = "base_model.model."
PARTS = {".lora_A.weight": 1, ".lora_B.weight": 0}  # which dimension it shares with the model's matrix


def misshapen(adapter: Path, base: Path) -> str:
    """The first matrix that does not fit, in words; empty if all do that the base has under the same name.

    A weight of shape (out, in) takes lora_A of (rank, in) and lora_B of (out, rank) [Hu et al. 2021, LoRA]. Raises
    BadRequest for a file that cannot be read.
    """
    shapes = {name: shape for file in weights(base) for name, shape in shapes_in(file).items()}
    for file in weights(adapter):
        for name, shape in shapes_in(file).items():
            part = next((part for part in PARTS if name.endswith(part)), None)
            there = shapes.get(name.removeprefix(PREFIX).removesuffix(part) + ".weight") if part else None
            if part and there and len(there) == 2 and shape[PARTS[part] :][:1] != [there[PARTS[part]]]:
                return f"{name} is of shape {shape}, and the model's own weight of {there}"
    return ""


def weights(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.safetensors") if file.is_file())


def shapes_in(file: Path) -> dict[str, list[int]]:
    """Of a safetensors file, by the names of its tensors. Raises BadRequest for any other."""
    try:
        with file.open("rb") as reading:
            (size,) = struct.unpack("<Q", reading.read(8))
            if size > LONGEST_HEAD_BYTES:
                raise ValueError(f"a head of {size} bytes")
            head: dict[str, Any] = json.loads(reading.read(size))
        return {name: [*map(index, said["shape"])] for name, said in head.items() if name != "__metadata__"}
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        remedy = "write it again with safetensors, and add that as another version"
        raise BadRequest(f"{file.name} is no safetensors file: {remedy}") from error
