"""Perplexity and bits per byte of texts that are not trained on, as `penstock eval perplexity` counts them.

Each text by itself, without a token that ends it: of a conversation, what the chat template writes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from evals.perplexity import unread, windows
from penstock.errors import ConfigError
from training import corpus
from training.data import conversation
from training.families.words import Conversation
from training.pretrain_recipe import ValidationPart

SEED = "validation"


class Text(NamedTuple):
    """`size` is that of what is scored, in bytes of UTF-8: all but the first token's."""

    tokens: list[int]
    size: int


class Window(NamedTuple):
    tokens: list[int]
    score_from: int


class Validation(NamedTuple):
    """`nats`: the negative log-probability of all scored tokens together."""

    nats: float
    tokens: int
    size: int

    @property
    def figures(self) -> dict[str, float]:
        mean = self.nats / self.tokens
        return {
            "validation_loss": mean,
            "perplexity": math.exp(min(mean, 700)),
            "bits_per_byte": self.nats / math.log(2) / self.size,
        }


def texts(part: ValidationPart, tokenizer: PreTrainedTokenizerFast) -> list[Text]:
    """Raises ConfigError for files that cannot be read, or that hold nothing to score."""
    found = [
        *(conversation(family, SEED, index) for family in part.families for index in range(part.items)),
        *(one.said for path in part.files for one in corpus.read(path)),
    ]
    scored = [one for said in found if len((one := _text(said, tokenizer)).tokens) > 1 and one.size]
    if not scored:
        raise ConfigError("the validation's files hold no text of two tokens: the first of a text is not scored")
    return scored


def _text(said: Conversation | str, tokenizer: PreTrainedTokenizerFast) -> Text:
    if not isinstance(said, str):
        written = tokenizer.apply_chat_template(said["messages"], tools=said.get("tools"), tokenize=False)
        said = cast("str", written)
    tokens = list(tokenizer(said, verbose=False)["input_ids"])
    return Text(tokens, len(unread(said, str(tokenizer.decode(tokens[:1]))).encode()))


@torch.no_grad()
def validate(
    logits_of: Callable[[Tensor], Tensor], found: Sequence[Text], length: int, rows: int, device: str = "cpu"
) -> Validation:
    """`logits_of` takes tokens (B, T) with T at most `length`; B is at most `rows`."""
    nats, tokens = 0.0, 0
    for some in _batches(_windows(found, length), rows):
        longest = max(len(window.tokens) for window in some)
        read = torch.tensor([window.tokens + [0] * (longest - len(window.tokens)) for window in some], device=device)
        following = read[:, 1:].clone()
        for row, window in enumerate(some):
            following[row, : window.score_from - 1] = -100
            following[row, len(window.tokens) - 1 :] = -100
        logits = logits_of(read)[:, :-1].float()
        nats += cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum").item()
        tokens += int((following != -100).sum())
    return Validation(nats, tokens, sum(text.size for text in found))


def _windows(found: Iterable[Text], length: int) -> list[Window]:
    """Of about equal length side by side, so that little is padding."""
    cut = [
        Window(text.tokens[one.begin : one.end], one.score_from - one.begin)
        for text in found
        for one in windows(len(text.tokens), length, max(1, length // 2))
    ]
    return sorted(cut, key=lambda window: len(window.tokens))


def _batches(cut: Sequence[Window], rows: int) -> Iterable[Sequence[Window]]:
    return (cut[begin : begin + rows] for begin in range(0, len(cut), rows))
