"""Documents in rows, several to a row or one, and rows in batches: all of it a function of the seed.

In a packed row each document begins at position 0 and reads nothing of its neighbours: transformers tells documents
apart by the positions that restart, if there is no mask beside them.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from training.masking import Document

OPEN_ROWS = 64
Item = TypeVar("Item")


class Batch(NamedTuple):
    """All are (rows, length); `mask` is None where documents are packed, else False where there is padding."""

    tokens: Tensor
    positions: Tensor
    learned: Tensor
    mask: Tensor | None

    def to(self, device: str) -> "Batch":
        return Batch(*(None if one is None else one.to(device) for one in self))  # type: ignore[arg-type]


def endless(lengths: Sequence[int], room: int | None, seed: str) -> Iterator[list[int]]:
    """Rows of documents by their numbers, epoch after epoch; with `room` as many tokens as fit, else one document."""
    epoch = 0
    while True:
        yield from one_epoch(lengths, room, f"{seed}/{epoch}")
        epoch += 1


def one_epoch(lengths: Sequence[int], room: int | None, seed: str) -> Iterator[list[int]]:
    """Every document once, in an order drawn from the seed: each goes into the first of the open rows with room."""
    order = list(range(len(lengths)))
    Random(seed).shuffle(order)
    if room is None:
        yield from ([one] for one in order)
        return
    rows: list[list[int]] = []
    left: list[int] = []
    for one in order:
        assert lengths[one] <= room
        place = next((i for i, tokens in enumerate(left) if tokens >= lengths[one]), None)
        if place is None:
            if len(rows) == OPEN_ROWS:
                fullest = left.index(min(left))
                left.pop(fullest)
                yield rows.pop(fullest)
            rows.append([])
            left.append(room)
            place = len(rows) - 1
        rows[place].append(one)
        left[place] -= lengths[one]
    yield from rows


def parts(rows: Sequence[Item], at_once: int | None) -> Iterator[Sequence[Item]]:
    """[a, b, c], 2 -> [a, b], [c]."""
    size = at_once or len(rows)
    yield from (rows[start : start + size] for start in range(0, len(rows), size))


def batch(rows: Sequence[Sequence[Document]], padding: int, *, packed: bool) -> Batch:
    """Padded on the right to the longest row. The first token of a document is never learned: nothing predicts it."""
    longest = max(sum(len(one.tokens) for one in row) for row in rows)
    tokens, positions, learned, mask = [], [], [], []
    for row in rows:
        filled = sum(len(one.tokens) for one in row)
        over = longest - filled
        tokens.append([token for one in row for token in one.tokens] + [padding] * over)
        positions.append([i for one in row for i in range(len(one.tokens))] + list(range(over)))
        learned.append([i > 0 and yes for one in row for i, yes in enumerate(one.learned)] + [False] * over)
        mask.append([True] * filled + [False] * over)
    return Batch(
        torch.tensor(tokens),
        torch.tensor(positions),
        torch.tensor(learned),
        None if packed else torch.tensor(mask),
    )
