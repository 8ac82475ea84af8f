"""Llama's transformer, and Qwen3's, which normalizes queries and keys: in plain torch, read from bottom to top.

RMSNorm before each half of a layer (Zhang and Sennrich 2019), rotary positions (Su et al. 2021, the halves of a head
rotated against each other), grouped-query attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020), no biases.
Parameters have the names and shapes of Hugging Face's `LlamaForCausalLM` and `Qwen3ForCausalLM`. Unlike theirs, the
padding token's embedding learns as any other: it stands between documents.

Shapes: B rows, T positions, C width, H heads of D numbers, V tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

from training.pretrain_recipe import ModelPart

EPSILON = 1e-6
ROPE_THETA = 10_000.0


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x.float(), self.weight.shape, self.weight, EPSILON)


class Attention(nn.Module):
    def __init__(self, shape: ModelPart) -> None:
        super().__init__()
        self.size = shape.head_size
        self.grouped = shape.heads != shape.key_value_heads
        self.q_proj = nn.Linear(shape.hidden_size, shape.heads * self.size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, shape.key_value_heads * self.size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, shape.key_value_heads * self.size, bias=False)
        self.o_proj = nn.Linear(shape.heads * self.size, shape.hidden_size, bias=False)
        normalized = shape.style == "qwen3"
        self.q_norm = RMSNorm(self.size) if normalized else None
        self.k_norm = RMSNorm(self.size) if normalized else None

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], seen: Tensor | None) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.size)).transpose(1, 2)  # (B, H, T, D)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm and self.k_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotated(q, *turns), rotated(k, *turns)
        y = scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None, enable_gqa=self.grouped)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, shape: ModelPart) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.ffn_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.ffn_size, bias=False)
        self.down_proj = nn.Linear(shape.ffn_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, shape: ModelPart) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], seen: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turns, seen)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Body(nn.Module):
    def __init__(self, shape: ModelPart, vocab_size: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden_size)


class Llama(nn.Module):
    """Tokens (B, T) -> logits (B, T, V).

    `positions` (B, T) begin anew where a document does, and `seen` (B, 1, T, T) says which earlier tokens each one
    looks at; without them a row is one text.
    """

    frequencies: Tensor

    def __init__(self, shape: ModelPart, vocab_size: int, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.model = Body(shape, vocab_size)
        self.lm_head = None if shape.tied else nn.Linear(shape.hidden_size, vocab_size, bias=False)
        self.checkpointed = checkpointed
        self.vocab_size = vocab_size
        frequencies = 1.0 / shape.rope_theta ** (torch.arange(0, shape.head_size, 2) / shape.head_size)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, tokens: Tensor, positions: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        x = self.model.embed_tokens(tokens)
        turns = self.turns(torch.arange(tokens.size(1), device=tokens.device)[None] if positions is None else positions)
        for layer in self.model.layers:
            arguments: tuple[Any, ...] = (x, turns, seen)
            x = checkpoint(layer, *arguments, use_reentrant=False) if self.checkpointed else layer(*arguments)
        x = self.model.norm(x)
        return linear(x, self.model.embed_tokens.weight) if self.lm_head is None else self.lm_head(x)

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the angles, each (B, 1, T, D): in float32, as positions are beyond bfloat16."""
        with torch.autocast(positions.device.type, enabled=False):
            angles = positions[:, None, :, None] * self.frequencies
            angles = torch.cat((angles, angles), -1)
            return angles.cos(), angles.sin()


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn the pair (x[i], x[i + D/2]) of each head by its position's i-th angle. x: (B, H, T, D)."""
    first, second = x.chunk(2, -1)
    return (x * cosines + torch.cat((-second, first), -1) * sines).type_as(x)
