"""Perplexity of a text, by token, byte and word, over strided windows.

exp of the mean negative log-probability of each token after those before it, as
https://huggingface.co/docs/transformers/perplexity defines it: windows of `length` tokens begin every `stride` tokens,
each token is scored once, in the first window that has it. So every token after the first window has at least
`length - stride` tokens before it; with a stride of half the length, the default, at least `stride`. The first token
has nothing before it and is not scored, and its bytes are not counted either (it is often a mark without any).

Only bits per byte compare models with different tokenizers.
"""

import math
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from penstock.errors import BadRequest

LENGTH = 1024


class Window(NamedTuple):
    """Tokens `begin` to `end` are read, those from `score_from` on are scored."""

    begin: int
    score_from: int
    end: int


class Source(Protocol):
    """What knows log-probabilities: a server (`evals/served.py`) or a folder of weights (`evals/local.py`)."""

    def tokens(self, text: str) -> Awaitable[list[int]]: ...

    def text(self, tokens: Sequence[int]) -> Awaitable[str]: ...

    def logprobs(self, tokens: Sequence[int]) -> Awaitable[list[float]]:
        """Of each token but the first after those before it: one fewer than there are tokens. Natural logarithms."""
        ...


@dataclass(frozen=True)
class Perplexity:
    """`nats`: the negative log-probability of all scored tokens together."""

    nats: float
    tokens: int
    bytes: int
    words: int
    length: int
    stride: int

    @property
    def token_perplexity(self) -> float:
        return exp(self.nats / self.tokens)

    @property
    def byte_perplexity(self) -> float:
        return exp(self.nats / self.bytes)

    @property
    def word_perplexity(self) -> float:
        """By white space."""
        return exp(self.nats / self.words)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    def described(self) -> dict[str, float]:
        names = ("token_perplexity", "byte_perplexity", "word_perplexity", "bits_per_byte")
        return {**{name: getattr(self, name) for name in names}, **vars(self)}


def exp(exponent: float) -> float:
    """It can be beyond any float, as by word for a text without spaces."""
    return math.exp(exponent) if exponent < 700 else math.inf


async def perplexity(text: str, source: Source, length: int = LENGTH, stride: int | None = None) -> Perplexity:
    """Raises BadRequest for a text of fewer than two tokens, or windows that cannot be."""
    stride = stride or max(1, length // 2)
    if not (length >= 2 and 1 <= stride < length):
        raise BadRequest(
            f"windows of {length} tokens every {stride}: the length must be at least 2 and above the stride, "
            "or the tokens where windows meet would have nothing before them"
        )
    tokens = await source.tokens(text)
    if len(tokens) < 2:
        raise BadRequest(f"the text has {len(tokens)} tokens: at least 2 are needed, since the first is not scored")
    tail = unread(text, await source.text(tokens[:1]))
    if not tail:
        raise BadRequest("the text has nothing after its first token, which is not scored: take a longer one")
    scored: list[float] = []
    for window in windows(len(tokens), length, stride):
        found = await source.logprobs(tokens[window.begin : window.end])
        scored += found[window.score_from - window.begin - 1 :]
    assert len(scored) == len(tokens) - 1
    return Perplexity(-math.fsum(scored), len(scored), len(tail.encode()), max(1, len(tail.split())), length, stride)


def windows(tokens: int, length: int, stride: int) -> Iterator[Window]:
    """(10, 4, 2) -> 0-4 scored from 1, 2-6 from 4, 4-8 from 6, 6-10 from 8."""
    scored = 1
    for begin in range(0, tokens, stride):
        end = min(begin + length, tokens)
        yield Window(begin, scored, end)
        scored = end
        if end == tokens:
            return


def unread(text: str, first: str) -> str:
    """The text after its first token. A mark that is no part of the text takes nothing away; of a character that is
    only begun (U+FFFD) all is taken."""
    if "\ufffd" in first and not text.startswith(first):
        return text[1:]
    return text.removeprefix(first)
