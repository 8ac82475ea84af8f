"""A small transformer by its shape: built, started at random, written in Hugging Face's layout.

What is written is loaded by transformers and by vLLM as their own `LlamaForCausalLM`, `Qwen3ForCausalLM` or
`GPT2LMHeadModel`.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from training import gpt2, llama
from training.gpt2 import GPT2
from training.llama import Llama
from training.pretrain_recipe import ModelPart

Model = Llama | GPT2
INITIAL_SPREAD = 0.02
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "gpt2": "GPT2LMHeadModel"}


def build(shape: ModelPart, vocab_size: int, seed: int, *, checkpointed: bool = False) -> Model:
    """`checkpointed`: each layer is computed again in the backward pass instead of being kept in memory."""
    kind = GPT2 if shape.style == "gpt2" else Llama
    model = kind(shape, vocab_size, checkpointed=checkpointed)
    initialize(model, shape, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def initialize(model: nn.Module, shape: ModelPart, generator: torch.Generator) -> None:
    """Matrices are drawn with a spread of 0.02; GPT-2's that write to the residual stream with less, as its paper says.

    Norms begin as ones and biases as zeros.
    """
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            shrunk = (2 * shape.layers) ** -0.5 if name.endswith("c_proj.weight") else 1.0
            weight.normal_(0.0, INITIAL_SPREAD * shrunk, generator=generator)


def looks_back(documents: Tensor) -> Tensor:
    """Which tokens each one sees: the earlier ones of its own document, and itself. (B, T) -> (B, 1, T, T)."""
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same.tril()


def positions_within(documents: Tensor) -> Tensor:
    """[[0, 0, 0, 1, 1]] -> [[0, 1, 2, 0, 1]]."""
    places = torch.arange(documents.size(1), device=documents.device).expand_as(documents)
    begins = documents.diff(dim=1, prepend=documents[:, :1] - 1) != 0
    return places - places.where(begins, 0).cummax(1).values


def configuration(shape: ModelPart, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> PretrainedConfig:
    """The shape in the words of transformers."""
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "architectures": [ARCHITECTURES[shape.style]],
    }
    if shape.style == "gpt2":
        return GPT2Config(
            n_embd=shape.hidden_size,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_inner=shape.ffn_size,
            n_positions=shape.max_length,
            activation_function="gelu_new",
            layer_norm_epsilon=gpt2.EPSILON,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **shared,
        )
    return (Qwen3Config if shape.style == "qwen3" else LlamaConfig)(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_size,
        intermediate_size=shape.ffn_size,
        max_position_embeddings=shape.max_length,
        rms_norm_eps=llama.EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        **shared,
    )


def export(
    model: Model,
    shape: ModelPart,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write weights, configuration, tokenizer and sampling defaults into an existing folder."""
    weights = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in model.named_parameters()}
    config = configuration(shape, tokenizer, model.vocab_size)
    config.dtype = str(dtype).removeprefix("torch.")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=temperature,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
