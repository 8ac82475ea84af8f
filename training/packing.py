"""Batches of packed conversations as a pure function of the step.

Nothing is read ahead or kept between steps, so a resumed run sees exactly what an uninterrupted
one would have seen.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.data import conversation
from training.families.words import Conversation
from training.recipe import Stage

MISSES_PER_ROW = 6
REST_WEIGHT = 0.1
SHARED_START = 3
LONGEST_REPEATED = 256


class Document(NamedTuple):
    tokens: list[int]
    weights: list[float]


class Batch(NamedTuple):
    tokens: Tensor  # (rows, length)
    weights: Tensor  # (rows, length)


def batch(tokenizer: PreTrainedTokenizerFast, stage: Stage, seed: int, step: int) -> Batch:
    packed = [_row(tokenizer, stage, Random(f"{seed}/{step}/{row}")) for row in range(stage.rows)]
    return Batch(torch.tensor([row.tokens for row in packed]), torch.tensor([row.weights for row in packed]))


def encoded(tokenizer: PreTrainedTokenizerFast, item: Conversation) -> Document:
    """Assistant turns weigh 1 with their EOS, all else weighs `REST_WEIGHT`."""
    rendered = cast(
        "dict[str, list[int]]",
        tokenizer.apply_chat_template(
            item["messages"],
            tools=item.get("tools"),
            return_dict=True,
            return_assistant_tokens_mask=True,
        ),
    )
    weights = [1.0 if answer else REST_WEIGHT for answer in rendered["assistant_masks"]]
    tokens = [*rendered["input_ids"], tokenizer.pad_token_id]
    return Document(tokens, [*weights, REST_WEIGHT])


def repeated_sequence(rng: Random, vocab_size: int, longest: int) -> Document:
    """Random tokens said twice or more; only the repetitions weigh, for only they are knowable.

    Nothing but looking back predicts them: this is what teaches a small model to copy. Often they
    are few different ones, which is easier to begin with: what was said at all, then what followed.
    """
    alphabet = _alphabet(rng, vocab_size)
    segment = [rng.choice(alphabet) for _ in range(rng.randint(4, max(4, longest // 4)))]
    times = rng.randint(2, 3)
    return Document(segment * times, [0.0] * len(segment) + [1.0] * len(segment) * (times - 1))


def shuffled_sequences(rng: Random, vocab_size: int, longest: int) -> Document:
    """Random segments, said once and then again in another order.

    One token back is not enough to find the place, for each stands in several segments: this
    teaches to look for several tokens at once, as a name among similar names demands. Only what
    follows a segment's first `SHARED_START` tokens weighs.
    """
    alphabet = _alphabet(rng, vocab_size)
    size = rng.randint(SHARED_START + 2, 14)
    count = rng.randint(2, max(2, min(10, longest // (2 * size))))
    segments = [[rng.choice(alphabet) for _ in range(size)] for _ in range(count)]
    again = rng.sample(segments, count)
    tokens = [token for segment in segments + again for token in segment]
    repeated = [0.0] * SHARED_START + [1.0] * (size - SHARED_START)
    return Document(tokens, [0.0] * (size * count) + repeated * count)


def _alphabet(rng: Random, vocab_size: int) -> Sequence[int]:
    """Eight tokens or a few dozen, or now and then all."""
    size = rng.choice((8, 16, 32, 64, vocab_size))
    return range(vocab_size) if size >= vocab_size else rng.sample(range(vocab_size), size)


def _row(tokenizer: PreTrainedTokenizerFast, stage: Stage, rng: Random) -> Document:
    """Whole documents until nothing more seems to fit, then padding."""
    tokens: list[int] = []
    weights: list[float] = []
    misses = 0
    while misses < MISSES_PER_ROW:
        document = _document(tokenizer, stage, rng)
        if len(tokens) + len(document.tokens) > stage.length:
            misses += 1
            continue
        tokens += document.tokens
        weights += document.weights
    padding = stage.length - len(tokens)
    return Document([*tokens, *[tokenizer.pad_token_id] * padding], [*weights, *[0.0] * padding])


def _document(tokenizer: PreTrainedTokenizerFast, stage: Stage, rng: Random) -> Document:
    if rng.random() < stage.random_sequences:
        kind = rng.choice((repeated_sequence, shuffled_sequences))
        return kind(rng, len(tokenizer), min(stage.length, LONGEST_REPEATED))
    [family] = rng.choices(list(stage.families), list(stage.families.values()))
    return encoded(tokenizer, conversation(family, "train", str(rng.getrandbits(48))))
