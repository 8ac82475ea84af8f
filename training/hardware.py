"""Where a run computes and in what precision: what a recipe leaves open, decided once."""

from pathlib import Path
from typing import Literal

import torch

from engine import machine
from penstock.errors import ConfigError
from training.pretrain_recipe import Recipe
from training.recipe import digests
from training.run import resolved_recipe

TOKENIZER_FILES = ("tokenizer_config.json", "chat_template.jinja")
Precision = Literal["float32", "bfloat16"]


def device_of(asked: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Raises ConfigError for a GPU that torch does not see."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda, but torch sees no GPU here: say `device: auto`, or install the extra `gpu`")
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked


def precision_of(asked: Literal["auto", "float32", "bfloat16"], device: str) -> Precision:
    """bfloat16 where the hardware multiplies it: on a CPU that emulates it, it is many times slower than float32."""
    if asked != "auto":
        return asked
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else machine.detect().bfloat16
    return "bfloat16" if fast else "float32"


def resolved(recipe: Recipe, out: Path, resume: bool) -> Recipe:
    """What was left to the machine, as the run in `out` has decided it, or decided now; digests of the data.

    Raises ConfigError for data that are not those whose digests the recipe tells.
    """
    before = (resolved_recipe(out) if resume else None) or {}
    device, precision = recipe.device, recipe.precision
    device = device_of(before.get("device", "auto") if device == "auto" else device)
    precision = precision_of(before.get("precision", "auto") if precision == "auto" else precision, device)
    read = [*recipe.files, *recipe.read_files]
    if recipe.tokenizer.folder:
        folder = recipe.tokenizer.folder
        read += [folder / "tokenizer.json", *(folder / name for name in TOKENIZER_FILES if (folder / name).exists())]
    found = digests(read)
    if changed := [path for path, digest in recipe.digests.items() if found.get(path) != digest]:
        raise ConfigError(f"not the data that the recipe's `digests` tell of: {', '.join(changed)}")
    return recipe.model_copy(update={"device": device, "precision": precision, "digests": found})
