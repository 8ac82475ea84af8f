"""What one replica has in its KV cache: how much of a prompt it need not compute again."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

BlockHash = int | bytes  # the engine's own name for a block, of no meaning here

MAX_BLOCKS = 2**18  # with vLLM's 16 tokens a block, four million tokens
LINK_BYTES = 16


@dataclass(slots=True)
class Block:
    """`link` stands for the block's tokens and all before them; `copies`: how many the engine has of it."""

    link: bytes
    copies: int = 1


class Cached:
    """The blocks that a replica told of, each found again by the tokens that lead to it.

    A block counts as often as it was stored, since the engine keeps a copy for each request that computed it, and
    tells of each copy's end. A block whose parent is not known is left out, and so is what comes after `max_blocks`:
    what is known is rather less than the truth. (It is more only if requests ask for vLLM's `kv_cache_report_mode:
    full`, which tells again of copies told of before.) A block takes about 250 bytes, however many its tokens.
    """

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self.max_blocks = max_blocks
        self.block_size: int | None = None
        self._blocks: dict[BlockHash, Block] = {}
        self._held: Counter[bytes] = Counter()

    def __len__(self) -> int:
        """How many different blocks are known."""
        return len(self._blocks)

    def stored(
        self,
        block_hashes: Sequence[BlockHash],
        parent: BlockHash | None,
        tokens: Sequence[int],
        block_size: int,
        salt: str = "",
    ) -> None:
        """Blocks that follow each other, and `parent` (None: a prompt's begin, for those with this salt); `tokens`
        fills them exactly.

        All blocks of a cache have one size: the first stored decides it, others are left out.
        """
        assert len(tokens) == len(block_hashes) * block_size
        if not self._blocks:
            self.block_size = block_size
        before = self._blocks.get(parent) if parent is not None else Block(root(salt))
        if before is None or block_size != self.block_size:
            return
        for name, link in zip(block_hashes, links(tokens, block_size, before.link), strict=True):
            if block := self._blocks.get(name):
                block.copies += 1
            elif len(self._blocks) < self.max_blocks:
                self._blocks[name] = Block(link)
                self._held[link] += 1
            else:
                return

    def removed(self, block_hashes: Iterable[BlockHash]) -> None:
        for name in block_hashes:
            block = self._blocks.get(name)
            if block and block.copies > 1:
                block.copies -= 1
            elif block:
                del self._blocks[name]
                self._held[block.link] -= 1
                if not self._held[block.link]:
                    del self._held[block.link]

    def cleared(self) -> None:
        self._blocks.clear()
        self._held.clear()

    def matched(self, tokens: Sequence[int], salt: str = "") -> int:
        """How many leading tokens of a prompt with this salt are cached: whole blocks, of prompts without adapter or
        image."""
        if not self._blocks or not self.block_size:
            return 0
        count = 0
        for link in links(tokens, self.block_size, root(salt)):
            if link not in self._held:
                break
            count += self.block_size
        return count


def root(salt: str) -> bytes:
    """What a prompt's first link follows: prompts of different salts have none in common."""
    return blake2b(salt.encode(), digest_size=LINK_BYTES).digest() if salt else b""


def links(tokens: Sequence[int], block_size: int, link: bytes = b"") -> Iterator[bytes]:
    """For each whole block a digest of its tokens and of the link before, so that equal links mean equal prompts."""
    for end in range(block_size, len(tokens) + 1, block_size):
        link = blake2b(link + array("q", tokens[end - block_size : end]).tobytes(), digest_size=LINK_BYTES).digest()
        yield link
