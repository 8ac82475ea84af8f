"""A model of random weights and its 4-bit forms, rounded to the nearest: large enough for a GPU to see a difference.

    python -m benchmarks.nearest OUT [--layers 36] [--width 4096] [--inner 12288] [--heads 32] [--device cuda]

OUT gets `dense` (bfloat16), `gptq` and `awq`, a file a layer, with the demo model's tokenizer. The layouts are those of
`training/quantize.py`; what they say is worth nothing, so it is speed and kernels that can be measured by them.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

from engine.dense_twin import AWQ_ORDER, copy_beside
from engine.launch import DEMO

SPREAD = 0.02
GROUP = 128
LARGEST = 15
IN_EIGHTS = tuple(range(8))
CONFIGS = {
    "gptq": {"quant_method": "gptq", "desc_act": False, "sym": True, "checkpoint_format": "gptq"},
    "awq": {"quant_method": "awq", "zero_point": True, "version": "gemm"},
}


def packed(values: Tensor, order: tuple[int, ...]) -> Tensor:
    """(rows, columns) of 0 to 15 -> (rows, columns / 8) of int32, where value i of eight stands at place order[i]."""
    eights = values.to(torch.int32).reshape(values.size(0), -1, 8)
    out = torch.zeros_like(eights[..., 0])
    for value, place in enumerate(order):
        out |= eights[..., value] << (4 * place)
    return out


def gptq(weight: Tensor) -> dict[str, Tensor]:
    """(outputs, inputs) -> symmetric: 8 is zero, of which the first format stores one less."""
    groups = weight.float().reshape(weight.size(0), -1, GROUP)  # (outputs, groups, GROUP)
    scale = (groups.abs().amax(2) / 7.5).half()  # (outputs, groups)
    values = (groups / scale.float()[..., None] + 8).round().clamp(0, LARGEST).flatten(1)
    inputs = torch.arange(weight.size(1), dtype=torch.int32)
    return {
        "qweight": packed(values, IN_EIGHTS).t(),
        "qzeros": packed(torch.full_like(scale.t(), 7), IN_EIGHTS),
        "scales": scale.t(),
        "g_idx": inputs // GROUP,
    }


def awq(weight: Tensor) -> dict[str, Tensor]:
    """(outputs, inputs) -> from the smallest to the largest of each group."""
    groups = weight.float().reshape(weight.size(0), -1, GROUP)
    low, high = groups.amin(2), groups.amax(2)
    scale = ((high - low) / LARGEST).half()
    zero = (-low / scale.float()).round().clamp(0, LARGEST)
    values = (groups / scale.float()[..., None] + zero[..., None]).round().clamp(0, LARGEST).flatten(1)
    return {
        "qweight": packed(values.t(), AWQ_ORDER),
        "qzeros": packed(zero.t(), AWQ_ORDER),
        "scales": scale.t(),
    }


def written(out: Path, config: Qwen3Config, device: str) -> None:
    ways: Mapping[str, Callable[[Tensor], dict[str, Tensor]]] = {"gptq": gptq, "awq": awq}
    for name in ("dense", *ways):
        (out / name).mkdir(parents=True)
        copy_beside(DEMO, out / name)
        config.save_pretrained(out / name)
        if name in ways:
            told = json.loads((out / name / "config.json").read_text())
            told["quantization_config"] = CONFIGS[name] | {"bits": 4, "group_size": GROUP}
            (out / name / "config.json").write_text(json.dumps(told, indent=2))
    with torch.device("meta"):
        kind: Any = AutoModelForCausalLM
        model = kind.from_config(config)
    sizes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    files: dict[str, list[str]] = {}
    for name in sizes:
        files.setdefault(".".join(name.split(".")[1:3]) if ".layers." in name else "others", []).append(name)
    holders: dict[str, dict[str, str]] = {name: {} for name in ("dense", *ways)}
    generator = torch.Generator(device).manual_seed(1)
    for file, names in files.items():
        made: dict[str, dict[str, Tensor]] = {name: {} for name in holders}
        for name in names:
            drawn = torch.randn(sizes[name], generator=generator, device=device) * SPREAD
            weight = (drawn if len(sizes[name]) == 2 else torch.ones_like(drawn)).bfloat16()
            made["dense"][name] = weight
            for way, quantized in ways.items():
                if ".layers." in name and weight.ndim == 2:
                    module = name.removesuffix(".weight")
                    made[way] |= {f"{module}.{part}": one for part, one in quantized(weight).items()}
                else:
                    made[way][name] = weight
        for way, tensors in made.items():
            plain = {name: one.contiguous().cpu() for name, one in tensors.items()}
            save_file(plain, out / way / f"{file}.safetensors", {"format": "pt"})
            holders[way] |= dict.fromkeys(plain, f"{file}.safetensors")
    for way, holder in holders.items():
        index = json.dumps({"metadata": {}, "weight_map": holder}, indent=2)
        (out / way / "model.safetensors.index.json").write_text(index)


def main() -> None:
    parser = argparse.ArgumentParser(description="A model of random weights, and its 4-bit forms.")
    parser.add_argument("out", type=Path)
    for name, value in {"layers": 36, "width": 4096, "inner": 12288, "heads": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO, local_files_only=True)
    config = Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        dtype="bfloat16",
        vocab_size=len(tokenizer),
        hidden_size=arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=max(1, arguments.heads // 4),
        head_dim=arguments.width // arguments.heads,
        intermediate_size=arguments.inner,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    written(arguments.out, config, arguments.device)


if __name__ == "__main__":
    main()
