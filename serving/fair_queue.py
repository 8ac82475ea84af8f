"""Who waits, and who is next: the more urgent first, among equals every tenant its share, a tenant's own in order.

Fair is start-time fair queueing (Goyal, Vin and Cheng, 1996): what a tenant is served, in tokens, moves its next
request back in virtual time. A tenant that floods the queue waits for itself; one that asks seldom is next.
"""

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

FORGET_FROM = 64


@dataclass(slots=True, eq=False)
class Waiter:
    """`cost` is in tokens, `deadline` and `since` are of the loop's clock. `outcome` is the name of its place, or the
    error that it has none."""

    tenant: str
    outcome: asyncio.Future[str]
    priority: int = 0
    cost: int = 1
    deadline: float = math.inf
    since: float = 0.0


class Flow:
    """One tenant's, in one priority."""

    __slots__ = ("finish", "is_due", "waiters")

    def __init__(self) -> None:
        self.waiters: deque[Waiter] = deque()
        self.finish = 0.0
        self.is_due = False  # whether it stands in the order


class Level:
    """One priority's flows. `_order`: (start, a number that grows, flow), a flow at most once."""

    def __init__(self) -> None:
        self.flows: dict[str, Flow] = {}
        self.waiting = 0
        self._now = 0.0
        self._order: list[tuple[float, int, Flow]] = []
        self._number = 0

    def push(self, waiter: Waiter) -> None:
        flow = self.flows.get(waiter.tenant)
        if flow is None:
            flow = self.flows[waiter.tenant] = Flow()
        flow.waiters.append(waiter)
        self.waiting += 1
        self._line_up(flow)

    def pop(self) -> Waiter:
        """Only while anyone waits."""
        while True:
            start, _, flow = heappop(self._order)
            flow.is_due = False
            if flow.waiters:
                break
        waiter = flow.waiters.popleft()
        self.waiting -= 1
        self._now = start
        flow.finish = start + max(1, waiter.cost)
        if flow.waiters:
            self._line_up(flow)
        elif len(self.flows) >= FORGET_FROM:
            self._forget()
        return waiter

    def drop(self, waiter: Waiter) -> bool:
        flow = self.flows.get(waiter.tenant)
        if flow is None or waiter not in flow.waiters:
            return False
        flow.waiters.remove(waiter)
        self.waiting -= 1
        return True

    def _line_up(self, flow: Flow) -> None:
        if not flow.is_due:
            flow.is_due = True
            self._number += 1
            heappush(self._order, (max(self._now, flow.finish), self._number, flow))

    def _forget(self) -> None:
        """Tenants of whom nothing waits, and who owe nothing."""
        self.flows = {tenant: flow for tenant, flow in self.flows.items() if flow.is_due or flow.finish > self._now}


class FairQueue:
    """Its length is how many wait."""

    def __init__(self) -> None:
        self._levels: dict[int, Level] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Waiter]:
        """In no order."""
        for level in self._levels.values():
            for flow in level.flows.values():
                yield from flow.waiters

    @property
    def urgency(self) -> int:
        """The highest priority of those who wait, 0 if none do."""
        return max(self._levels, default=0)

    def push(self, waiter: Waiter) -> None:
        level = self._levels.get(waiter.priority)
        if level is None:
            level = self._levels[waiter.priority] = Level()
        level.push(waiter)
        self._length += 1

    def pop(self) -> Waiter | None:
        """The next."""
        if not self._length:
            return None
        priority = self.urgency
        waiter = self._levels[priority].pop()
        self._left(priority)
        return waiter

    def drop(self, waiter: Waiter) -> bool:
        """It waits no longer. Whether it did."""
        level = self._levels.get(waiter.priority)
        if level is None or not level.drop(waiter):
            return False
        self._left(waiter.priority)
        return True

    def correct(self, tenant: str, priority: int, tokens: int) -> None:
        """What the tenant was served has come to so many tokens less than its cost."""
        level = self._levels.get(priority)
        flow = level.flows.get(tenant) if level else None
        if flow:
            flow.finish -= tokens

    def ahead_of(self, tenant: str, priority: int) -> int:
        """How many would be served before a new one of this tenant, if all cost the same."""
        ahead = 0
        for at, level in self._levels.items():
            if at > priority:
                ahead += level.waiting
            elif at == priority:
                own = len(level.flows[tenant].waiters) if tenant in level.flows else 0
                ahead += sum(min(len(flow.waiters), own + (name != tenant)) for name, flow in level.flows.items())
        return ahead

    def _left(self, priority: int) -> None:
        self._length -= 1
        if not self._levels[priority].waiting:
            del self._levels[priority]  # what its tenants were served is forgotten with it: nobody has waited
