"""LoRA adapters of the bundled model as PEFT writes them, made from numbers alone."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 4
MODULES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def lora(folder: Path, base: Path, size: float, seed: int = 0) -> Path:
    """Changes the outputs of the layers by about `size` of the weights' own size; 0 changes nothing."""
    config = json.loads((base / "config.json").read_text())
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    shapes = {
        "self_attn.q_proj": (hidden, heads * config["head_dim"]),
        "self_attn.v_proj": (hidden, config["num_key_value_heads"] * config["head_dim"]),
        "mlp.down_proj": (inner, hidden),
    }
    drawn = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module in MODULES:
            into, out = shapes[module]
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, into, generator=drawn) / into**0.5
            tensors[f"{name}.lora_B.weight"] = size * torch.randn(out, RANK, generator=drawn)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    said = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": [module.rpartition(".")[2] for module in MODULES],
        "base_model_name_or_path": "demo",
    }
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder
