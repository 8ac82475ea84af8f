"""Answers kept in this process: no more bytes than allowed, none too old, to each tenant its share.

When there is no room, the tenant that holds the most bytes gives up what it has not used the longest. So nobody's
answers push out those of tenants who hold less.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from serving.recording import Recorded

SPARE_CLAIMS = 64

Key = tuple[str, bytes]
"""The tenant, and what it calls the answer."""


@dataclass(frozen=True, slots=True)
class Kept:
    """`asked` is the digest of the request that it answers."""

    asked: bytes
    answer: Recorded
    until: float


@dataclass(slots=True)
class Share:
    """What one tenant has, the last used at the end."""

    size: int = 0
    kept: OrderedDict[bytes, Kept] = field(default_factory=OrderedDict)


class Shelf:
    """`find` and `keep` are all that a shelf is: one that several processes share would have the same two."""

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        self.max_bytes = max_bytes
        self.ttl_s = ttl_s
        self.size = 0
        self._shares: dict[str, Share] = {}
        self._claims: list[tuple[int, str]] = []  # a heap of (-size, tenant); true where the share is still that large

    def __len__(self) -> int:
        return sum(len(share.kept) for share in self._shares.values())

    def find(self, key: Key) -> Kept | None:
        tenant, name = key
        share = self._shares.get(tenant)
        kept = share.kept.get(name) if share else None
        if share is None or kept is None:
            return None
        if kept.until <= time.monotonic():
            self._drop(tenant, name)
            return None
        share.kept.move_to_end(name)
        return kept

    def keep(self, key: Key, asked: bytes, answer: Recorded) -> None:
        """What is larger than the whole shelf is not kept; what is larger than its tenant's share is gone at once."""
        tenant, name = key
        self._drop(tenant, name)
        if answer.size > self.max_bytes:
            return
        share = self._shares.setdefault(tenant, Share())
        share.kept[name] = Kept(asked, answer, time.monotonic() + self.ttl_s)
        self._resize(tenant, share, answer.size)
        while self.size > self.max_bytes:
            largest = self._largest()
            self._drop(largest, next(iter(self._shares[largest].kept)))

    def _drop(self, tenant: str, name: bytes) -> None:
        share = self._shares.get(tenant)
        kept = share.kept.pop(name, None) if share else None
        if share and kept:
            self._resize(tenant, share, -kept.answer.size)

    def _resize(self, tenant: str, share: Share, by: int) -> None:
        self.size += by
        share.size += by
        if share.kept:
            heappush(self._claims, (-share.size, tenant))
        else:
            del self._shares[tenant]
        if len(self._claims) > 2 * len(self._shares) + SPARE_CLAIMS:
            self._claims = [(-share.size, tenant) for tenant, share in self._shares.items()]
            heapify(self._claims)

    def _largest(self) -> str:
        """Who holds the most; of several, the first by name."""
        while True:
            size, tenant = self._claims[0]
            share = self._shares.get(tenant)
            if share and share.size == -size:
                return tenant
            heappop(self._claims)
