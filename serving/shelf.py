"""Answers kept in this process: no more bytes than allowed, none too old, those unused the longest go first."""

import time
from collections import OrderedDict
from dataclasses import dataclass

from serving.recording import Recorded

Key = tuple[str, bytes]
"""The tenant, and what it calls the answer."""


@dataclass(frozen=True, slots=True)
class Kept:
    """`asked` is the digest of the request that it answers."""

    asked: bytes
    answer: Recorded
    until: float


class Shelf:
    """`find` and `keep` are all that a shelf is: one that several processes share would have the same two."""

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        self.max_bytes = max_bytes
        self.ttl_s = ttl_s
        self.size = 0
        self._kept: OrderedDict[Key, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: Key) -> Kept | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept.until <= time.monotonic():
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return kept

    def keep(self, key: Key, asked: bytes, answer: Recorded) -> None:
        """What is larger than the whole shelf is not kept."""
        self._drop(key)
        if answer.size > self.max_bytes:
            return
        self._kept[key] = Kept(asked, answer, time.monotonic() + self.ttl_s)
        self.size += answer.size
        while self.size > self.max_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Key) -> None:
        kept = self._kept.pop(key, None)
        if kept:
            self.size -= kept.answer.size
