"""Batches of packed documents as a pure function of the step.

Nothing is kept between steps, so a resumed run sees exactly what an uninterrupted one would have seen.
"""

from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from penstock.errors import ConfigError
from training.corpus import Corpus, Document, encoded, filler
from training.data import conversation
from training.exercises import marked_passages, repeated_sequence, shuffled_sequences
from training.pretrain_recipe import Stage

MISSES_PER_ROW = 6
LONGEST_REPEATED = 256


class Batch(NamedTuple):
    """`documents` numbers those of a row: [0, 0, 0, 1, 1, 2, 2], the last of them being the padding."""

    tokens: Tensor  # (rows, length)
    weights: Tensor  # (rows, length)
    documents: Tensor  # (rows, length)

    def parts(self, count: int) -> list["Batch"]:
        return [Batch(*part) for part in zip(*(tensor.chunk(count) for tensor in self), strict=True)]

    def to(self, device: str) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


def batch(
    tokenizer: PreTrainedTokenizerFast, stage: Stage, seed: int, step: int, corpus: Corpus | None = None
) -> Batch:
    """`corpus` has the documents of `stage.files`, none longer than a row. Raises ConfigError if nothing fits one."""
    packed = [_row(tokenizer, stage, Random(f"{seed}/{step}/{row}"), corpus or {}) for row in range(stage.rows)]
    return Batch(*(torch.tensor(column) for column in zip(*packed, strict=True)))


def apart(rows: Batch) -> Batch:
    """For documents that do not see each other: the first token of one, with nothing before it, has no weight."""
    begins = rows.documents.diff(dim=1, prepend=rows.documents[:, :1] - 1) != 0
    return rows._replace(weights=rows.weights.masked_fill(begins, 0.0))


def _row(
    tokenizer: PreTrainedTokenizerFast, stage: Stage, rng: Random, corpus: Corpus
) -> tuple[list[int], list[float], list[int]]:
    """Whole documents until nothing more seems to fit, then padding."""
    tokens: list[int] = []
    weights: list[float] = []
    numbers: list[int] = []
    misses = number = 0
    while misses < MISSES_PER_ROW and len(tokens) < stage.length:
        document = _document(tokenizer, stage, rng, corpus)
        if len(tokens) + len(document.tokens) > stage.length:
            misses += 1
            continue
        tokens += document.tokens
        weights += document.weights
        numbers += [number] * len(document.tokens)
        number += 1
    if not tokens:
        raise ConfigError(f"{misses} documents in turn were longer than a row of {stage.length}: raise `length`")
    padding = stage.length - len(tokens)
    return [*tokens, *[filler(tokenizer)] * padding], [*weights, *[0.0] * padding], [*numbers, *[number] * padding]


def _document(tokenizer: PreTrainedTokenizerFast, stage: Stage, rng: Random, corpus: Corpus) -> Document:
    roll = rng.random()
    if roll < stage.random_sequences:
        exercise = rng.choice((repeated_sequence, shuffled_sequences))
        return exercise(rng, len(tokenizer), min(stage.length, LONGEST_REPEATED))
    if roll < stage.random_sequences + stage.marked_passages:
        return marked_passages(rng, tokenizer)
    [source] = rng.choices([*stage.families, *stage.files], [*stage.families.values(), *stage.files.values()])
    if not isinstance(source, Path):
        item = conversation(str(source), "train", str(rng.getrandbits(48)))
        return encoded(tokenizer, item, rest=stage.rest_weight, decision=stage.decision_weight)
    return rng.choice(corpus[source])
