"""The recipe of a quantization, and which of a model's weights it reaches: told from a file's head, without torch."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from penstock.errors import StartError
from training.data import FAMILIES
from training.recipe import Part

# vLLM's 4-bit kernel for CPUs takes widths that these divide.
KERNEL_MULTIPLE = 32
LAYERS = "model.layers"


class Texts(Part):
    """Conversations: of a file of JSON lines (`{"messages": [...], "tools": [...]}`), or else of the demo's families,
    an equal number of each. A conversation is cut after `length` tokens."""

    file: Path | None = None
    families: tuple[str, ...] = tuple(FAMILIES)
    texts: PositiveInt = 128
    length: int = Field(default=1024, ge=2)

    @model_validator(mode="after")
    def families_exist(self) -> "Texts":
        if unknown := set(self.families) - set(FAMILIES):
            raise ValueError(f"unknown families {sorted(unknown)}, there are {sorted(FAMILIES)}")
        return self


class QuantizeRecipe(Part):
    """`model`: `demo`, a folder of dense weights or `registry:NAME@ALIAS`. `group_size`: how many inputs share a scale,
    of gptq and awq; int8 has a scale for each output. `evaluation` must not be what `calibration` is."""

    script: Literal["quantize"]
    seed: int
    threads: PositiveInt = 1
    model: str
    method: Literal["gptq", "awq", "int8"]
    group_size: Literal[32, 64, 128] = 128
    calibration: Texts = Texts()
    evaluation: Texts = Texts()


def linear_weights(folder: Path) -> dict[str, tuple[int, int]]:
    """Name -> (outputs, inputs) of the matrices that are quantized: those of the layers, neither embeddings nor what
    is before or after them. Raises StartError for a folder without safetensors."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise StartError(f"{folder} has no .safetensors: quantization reads no other weights")
    return {
        name: (shape[0], shape[1])
        for file in files
        for name, shape in shapes(file).items()
        if name.startswith(f"{LAYERS}.") and name.endswith(".weight") and len(shape) == 2
    }


def layers(weights: Mapping[str, tuple[int, int]]) -> int:
    return len({name.removeprefix(LAYERS).split(".")[1] for name in weights})


def shapes(file: Path) -> dict[str, list[int]]:
    """From the head of a safetensors file: eight bytes of length, then JSON."""
    with file.open("rb") as content:
        (length,) = struct.unpack("<Q", content.read(8))
        head = json.loads(content.read(length))
    return {name: entry["shape"] for name, entry in head.items() if name != "__metadata__"}


def refuse_widths(weights: Mapping[str, tuple[int, int]], group_size: int) -> None:
    """Raises StartError, with the group sizes that would do, before anything is computed."""
    if not weights:
        raise StartError(f"the model has no matrices in {LAYERS}: only models built like Llama are quantized here")
    if odd := {name: size for name, size in weights.items() if any(one % KERNEL_MULTIPLE for one in size)}:
        name, (outputs, inputs) = next(iter(odd.items()))
        raise StartError(
            f"{name} is {outputs} x {inputs}: 4-bit kernels need multiples of {KERNEL_MULTIPLE}. Use method: int8"
        )
    if wrong := [name for name, (_, inputs) in weights.items() if inputs % group_size]:
        widths = sorted({inputs for _, inputs in weights.values()})
        fit = [str(size) for size in (128, 64, 32) if not any(width % size for width in widths)]
        raise StartError(
            f"group_size: {group_size} does not divide {weights[wrong[0]][1]}, the inputs of {wrong[0]} (and of "
            f"{len(wrong) - 1} more): choose {' or '.join(fit)}"
        )
