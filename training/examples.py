"""The rows of a recipe's files as tokens: what is wrong is told before anything runs, and nothing is cut."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from transformers import PreTrainedTokenizerBase

from penstock.errors import BadRequest
from training import formats, preferences
from training.formats import Bad, refuse
from training.masking import Document, document
from training.messages import Wrong
from training.preferences import Pair
from training.tuning_recipe import Data, Pairs

Item = TypeVar("Item")


class Tokens(NamedTuple):
    """A pair as tokens."""

    chosen: Document
    rejected: Document


def documents(tokenizer: PreTrainedTokenizerBase, data: Sequence[Data], length: int, most_bad: int) -> list[Document]:
    """Raises BadRequest with every bad row, up to a number."""
    found: list[Document] = []
    bad: list[Bad] = []
    for part in data:
        read = formats.read(part.path, part.format)
        bad += read.bad
        lines = list(zip(read.lines, read.conversations, strict=True))
        found += _each(part.path, lines, lambda item: document(tokenizer, item), bad)
        print(f"{part.path}: {len(read.conversations)} rows of {read.format}, {len(read.bad)} bad", flush=True)
    refuse(bad, most_bad)
    return _short(found, length, lambda one: len(one.tokens), bad)


def pairs(tokenizer: PreTrainedTokenizerBase, data: Sequence[Pairs], length: int, most_bad: int) -> list[Tokens]:
    """Raises BadRequest with every bad row, up to a number."""

    def tokens(pair: Pair) -> Tokens:
        return Tokens(document(tokenizer, pair.chosen), document(tokenizer, pair.rejected))

    found: list[Tokens] = []
    bad: list[Bad] = []
    for part in data:
        read = preferences.read(part.path)
        bad += read.bad
        found += _each(part.path, list(zip(read.lines, read.pairs, strict=True)), tokens, bad)
        print(f"{part.path}: {len(read.pairs)} pairs, {len(read.bad)} bad", flush=True)
    refuse(bad, most_bad)
    return _short(found, length, lambda one: max(len(one.chosen.tokens), len(one.rejected.tokens)), bad)


Said = TypeVar("Said")


def _each(path: Path, items: Sequence[tuple[int, Said]], made: Callable[[Said], Item], bad: list[Bad]) -> list[Item]:
    good = []
    for line, item in items:
        try:
            good.append(made(item))
        except Wrong as wrong:
            bad.append(Bad(path, line, str(wrong)))
    return good


def _short(found: Sequence[Item], length: int, size: Callable[[Item], int], bad: Sequence[Bad]) -> list[Item]:
    """Those that fit: a conversation cut off would be learned without its end."""
    kept = [one for one in found if size(one) <= length]
    if not kept:
        longest = f"; the shortest has {min(map(size, found))} tokens" if found else ""
        raise BadRequest(f"no row is left to learn from with `length: {length}`{longest}")
    if over := len(found) - len(kept):
        print(f"{over} of {len(found)} rows are longer than `length: {length}` and left out", file=sys.stderr)
    for one in bad[: formats.MOST_SHOWN]:
        print(f"left out: {one}", file=sys.stderr)
    return kept
