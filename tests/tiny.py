"""A dense model of random weights in Hugging Face's layout, with the demo's tokenizer: as small as vLLM's kernels take.

`python -m tests.tiny OUT` quantizes it by GPTQModel (`make quantizer` first) into OUT/gptq and OUT/awq; so the folders
in tests/data/quantized were made, which go without a tokenizer.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from engine.launch import DEMO
from training.quantize import quantize

WIDTH = 64
RECIPE = """
script: quantize
seed: 1
model: {model}
method: {method}
calibration: {{texts: 32, length: 256}}
evaluation: {{texts: 4, length: 256}}
"""


def write_tiny(folder: Path, dtype: torch.dtype = torch.bfloat16, shard_bytes: int = 2**30) -> Path:
    """Wide enough in its weights to be of a mind: it gives tokens very different probabilities."""
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=len(PreTrainedTokenizerFast.from_pretrained(DEMO)),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=WIDTH,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
    )
    model: Any = Qwen3ForCausalLM(config)  # type: ignore[no-untyped-call]
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_bytes)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(DEMO / name, folder / name)
    return folder


def recipe(folder: Path, model: Path, method: str, more: str = "") -> Path:
    path = folder / f"{method}.yaml"
    path.write_text(RECIPE.format(model=model, method=method) + more)
    return path


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        dense = write_tiny(Path(temporary) / "dense")
        for method in ("gptq", "awq"):
            run = Path(temporary) / method
            quantize(recipe(Path(temporary), dense, method, "group_size: 32\n"), run, resume=False)
            out = Path(sys.argv[1]) / method
            out.mkdir(parents=True)
            for name in ("config.json", "model.safetensors"):
                shutil.copyfile(run / "model" / name, out / name)
