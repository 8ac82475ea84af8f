"""A GPT-2 as one would write it in an afternoon: one class, fused queries, keys and values, no options.

The yardstick of `benchmarks/training.py` for how fast code without a framework is; nothing is trained with it.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention


class Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.act, self.down = nn.Linear(width, inner), nn.GELU("tanh"), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.first(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + self.out(seen)
        return x + self.down(self.act(self.up(self.second(x))))  # type: ignore[no-any-return]


class PlainGPT(nn.Module):
    """(B, T) tokens -> the mean loss of the next ones."""

    def __init__(self, vocab: int, width: int, layers: int, heads: int, inner: int, length: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, inner) for _ in range(layers)))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        self.head.weight = self.tokens.weight
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.size(1), device=tokens.device))
        logits = self.head(self.last(self.blocks(x)))
        return cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())
