"""Which prompts the engine has seen: blocks of sixteen tokens, the least recently used forgotten first."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

BLOCK_TOKENS = 16


class PrefixCache:
    def __init__(self, blocks: int) -> None:
        self.room = blocks
        self.blocks: OrderedDict[int, None] = OrderedDict()

    def hit(self, ids: Sequence[int], salt: str = "") -> int:
        """How many leading tokens are there, for who has this salt; at least the last is always computed anew, as in
        vLLM."""
        hits = 0
        for block in blocks_of(ids[:-1], salt):
            if block not in self.blocks:
                break
            self.blocks.move_to_end(block)
            hits += 1
        return hits * BLOCK_TOKENS

    def add(self, ids: Sequence[int], salt: str = "") -> None:
        for block in blocks_of(ids, salt):
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > self.room:
            self.blocks.popitem(last=False)


def blocks_of(ids: Sequence[int], salt: str) -> Iterator[int]:
    """A number for each whole block, which stands for it and all before it."""
    chained = hash(salt) if salt else 0
    for start in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        chained = hash((chained, *ids[start : start + BLOCK_TOKENS]))
        yield chained
