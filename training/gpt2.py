"""GPT-2's transformer (Radford et al. 2019): LayerNorm, learned positions, GELU, biases, tied embeddings.

Parameters have the names and shapes of Hugging Face's `GPT2LMHeadModel`, whose matrices are (in, out).
Shapes: B rows, T positions, C width, H heads of D numbers, V tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from training.pretrain_recipe import ModelPart

EPSILON = 1e-5


class Projection(nn.Module):
    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inward, outward))
        self.bias = nn.Parameter(torch.zeros(outward))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.T, self.bias)


class Attention(nn.Module):
    def __init__(self, shape: ModelPart) -> None:
        super().__init__()
        self.size = shape.head_size
        self.c_attn = Projection(shape.hidden_size, 3 * shape.hidden_size)
        self.c_proj = Projection(shape.hidden_size, shape.hidden_size)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (-1, self.size)).transpose(1, 2)  # (B, H, T, D)
            for part in self.c_attn(x).chunk(3, -1)
        )
        y = scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None)
        return self.c_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, shape: ModelPart) -> None:
        super().__init__()
        self.c_fc = Projection(shape.hidden_size, shape.ffn_size)
        self.c_proj = Projection(shape.ffn_size, shape.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(gelu(self.c_fc(x), approximate="tanh"))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, shape: ModelPart) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.hidden_size, EPSILON)
        self.attn = Attention(shape)
        self.ln_2 = nn.LayerNorm(shape.hidden_size, EPSILON)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), seen)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class Body(nn.Module):
    def __init__(self, shape: ModelPart, vocab_size: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, shape.hidden_size)
        self.wpe = nn.Embedding(shape.max_length, shape.hidden_size)
        self.h = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.hidden_size, EPSILON)


class GPT2(nn.Module):
    """Tokens (B, T) -> logits (B, T, V); `positions` and `seen` as `training.llama.Llama` has them."""

    def __init__(self, shape: ModelPart, vocab_size: int, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.transformer = Body(shape, vocab_size)
        self.vocab_size = vocab_size
        self.checkpointed = checkpointed

    def forward(self, tokens: Tensor, positions: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        if positions is None:
            positions = torch.arange(tokens.size(1), device=tokens.device)
        x = self.transformer.wte(tokens) + self.transformer.wpe(positions)
        for layer in self.transformer.h:
            x = checkpoint(layer, x, seen, use_reentrant=False) if self.checkpointed else layer(x, seen)
        return linear(self.transformer.ln_f(x), self.transformer.wte.weight)
