"""Weights of 8 bits in compressed-tensors' layout, which vLLM multiplies by activations of 8 bits (W8A8).

A weight is rounded to the nearest of 255 multiples of its output's scale. Activations are rounded while serving, for
each token by its own scale, so nothing has to be known of them here: no calibration.
"""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.quantized import INT8_FORMAT

LARGEST = 127  # of int8's values -128 has no counterpart


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs, inputs) -> int8 of the same shape, float32 scales (outputs, 1)."""
    scale = weight.float().abs().amax(1, keepdim=True) / LARGEST
    scale = torch.where(scale == 0, 1.0, scale)
    return (weight.float() / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def rounded_by_token(activations: Tensor) -> Tensor:
    """(..., inputs): what is left of activations that an engine rounds to 8 bits, by the largest of each token."""
    scale = activations.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
    return (activations / scale).round() * scale


def quantization_config() -> dict[str, Any]:
    """What `config.json` says of it, in compressed-tensors' words."""
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": INT8_FORMAT,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**eight, "strategy": "channel", "dynamic": False},
                "input_activations": {**eight, "strategy": "token", "dynamic": True},
            }
        },
    }


def write_int8(model: Path, out: Path, names: Container[str]) -> None:
    """The weights called `names` rounded, all others as they are; shard by shard, with the index that belongs to it."""
    holder: dict[str, str] = {}
    files = sorted(model.glob("*.safetensors"))
    for file in files:
        tensors: dict[str, Tensor] = {}
        for name, tensor in load_file(file).items():
            if name in names:
                tensors[name], tensors[f"{name}_scale"] = rounded(tensor)
            else:
                tensors[name] = tensor
        save_file(tensors, out / file.name, metadata={"format": "pt"})
        holder |= dict.fromkeys(tensors, file.name)
    if len(files) > 1:
        index = {"metadata": {}, "weight_map": holder}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = quantization_config()
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
