"""The replicas of one engine, and which of them takes the next request.

The least outstanding tokens, unless another replica has seen how the prompt begins (or the caller's key points to
it) and is not loaded more than `affinity_factor` above the least. One list of costs, kept up to date as requests come
and go, makes the choice independent of the number of replicas but for one pass of `min` over floats.
"""

import asyncio
import math
from collections.abc import Collection, Iterable, Sequence

from engine.affinity import Hint, PrefixIndex, Ring
from engine.replica import Replica
from penstock.config import Routing
from penstock.errors import EngineUnavailable

RETRY_AFTER_S = 5
LONGEST_RETRY_AFTER_S = 60
LEAST_RETRIES = 3
NEVER = math.inf
# Among the equally loaded the one that was given the least: small enough never to outweigh a token outstanding.
EVENNESS = 1e-9
SMOOTHING = 0.1
IDLE_POLL_S = 0.05


class NoReplica(EngineUnavailable):
    """Nothing was asked, since nobody is there to be asked."""


class Pool:
    def __init__(self, name: str, replicas: Sequence[Replica], wait_s: float, routing: Routing | None = None) -> None:
        """`wait_s`: how long a request waits for a replica while none is ready."""
        self.name = name
        self.wait_s = wait_s
        self.routing = routing or Routing()
        self.active = 0
        self.retrying = 0
        self.usual_s = 0.0
        self.index = PrefixIndex()
        self._slots: list[Replica | None] = []
        self._costs: list[float] = []
        self._numbers: dict[Replica, int] = {}
        self._ring = Ring({})
        self._usable = asyncio.Event()
        self._ready = asyncio.Event()
        for replica in replicas:
            self.add(replica)

    @property
    def replicas(self) -> list[Replica]:
        return list(self._numbers)

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    def change(self, wait_s: float, routing: Routing) -> None:
        """From the next request on."""
        self.wait_s = wait_s
        self.routing = routing
        for replica in self._numbers:
            self._settle(replica)

    def reweigh(self, replica: Replica, weight: float) -> None:
        """It stays level with the others, or it would get everything until it has caught up."""
        replica.given_tokens *= weight / replica.weight
        replica.weight = weight
        self._loaded(replica)

    async def idle(self) -> None:
        """Returns when no request waits or runs here."""
        while self.active:
            await asyncio.sleep(IDLE_POLL_S)

    def add(self, replica: Replica) -> None:
        slot = self._slots.index(None) if None in self._slots else len(self._slots)
        self._slots[slot : slot + 1] = [replica]
        self._costs[slot : slot + 1] = [NEVER]
        # A newcomer starts level with the others, or all requests would be its until it has caught up.
        replica.given_tokens = min((r.given_tokens / r.weight for r in self._numbers), default=0) * replica.weight
        self._numbers[replica] = slot
        self._settle(replica)
        replica.changed = self._changed
        replica.loaded = self._loaded
        replica.restarted = self._restarted
        self._ring = Ring({member.client.url: number for member, number in self._numbers.items()})
        self._changed(replica)

    def remove(self, replica: Replica) -> None:
        """It gets nothing new; what runs there is the caller's to await."""
        slot = self._numbers.pop(replica)
        replica.changed = replica.loaded = replica.restarted = lambda replica: None
        self.index.forget(1 << slot)
        self._slots[slot] = None
        self._costs[slot] = NEVER
        self._ring = Ring({member.client.url: number for member, number in self._numbers.items()})
        self._announce()

    def choose(self, hint: Hint, tried: Collection[Replica] = ()) -> Replica | None:
        """The replica for a request, never one of `tried`; None while none can take it."""
        costs = self._costs
        if tried:
            out = {self._numbers.get(replica) for replica in tried}
            costs = [NEVER if slot in out else cost for slot, cost in enumerate(costs)]
        least = min(costs, default=NEVER)
        if least == NEVER:
            return None
        slot = costs.index(least)
        if self.routing.affinity == "prefix":
            slot = self._preferred(hint, costs, self.routing.affinity_factor * (least + hint.tokens), slot)
            self.index.sent(hint.chain, 1 << slot)
        return self._slots[slot]

    def _preferred(self, hint: Hint, costs: list[float], ceiling: float, least_loaded: int) -> int:
        """The slot that has the prompt's beginning, or the caller's key, if it costs no more than the ceiling."""
        if hint.key:
            return next((slot for slot in self._ring.walk(hint.key) if costs[slot] <= ceiling), least_loaded)
        if hint.token_ids:
            slot = self._precise(hint, costs, ceiling)
            if slot is not None:
                return slot
        mask = self.index.longest(hint.chain)
        if not mask or mask >> least_loaded & 1:
            return least_loaded
        slots = [slot for slot in bits(mask) if costs[slot] <= ceiling]
        return min(slots, key=costs.__getitem__) if slots else least_loaded

    def _precise(self, hint: Hint, costs: list[float], ceiling: float) -> int | None:
        """The slot whose engine says that it holds the most of these tokens."""
        best, most = None, 0
        for slot, replica in enumerate(self._slots):
            if replica and replica.cached and costs[slot] <= ceiling:
                held = replica.cached.matched(hint.token_ids, hint.salt)
                if held > most:
                    best, most = slot, held
        return best

    async def available(self, hint: Hint, tried: Collection[Replica] = ()) -> Replica:
        """`choose`, waiting while no replica is ready. Raises NoReplica."""
        deadline = asyncio.get_running_loop().time() + self.wait_s
        while (replica := self.choose(hint, tried)) is None:
            if self.ready and not self._usable.is_set():
                raise NoReplica(
                    f"every replica of the engine {self.name} has failed repeatedly and is left alone for a moment",
                    retry_after_s=self._until_half_open_s(),
                )
            if self._usable.is_set():  # those that were not tried are not ready: what failed may be tried again
                tried = ()
                continue
            try:
                async with asyncio.timeout_at(deadline):
                    await self._ready.wait()
            except TimeoutError:
                raise NoReplica(
                    f"the engine {self.name} is not ready; try again in a few seconds", retry_after_s=RETRY_AFTER_S
                ) from None
        return replica

    async def until_ready(self) -> None:
        """Returns when any replica is."""
        await self._ready.wait()

    def may_retry(self) -> bool:
        """Retries are a share of what runs: an engine that fails everything is not asked twice as often for it."""
        return self.retrying < max(LEAST_RETRIES, self.routing.retry_share * self.active)

    def took(self, seconds: float) -> None:
        """A request was answered in this time."""
        self.usual_s += SMOOTHING * (seconds - self.usual_s)

    @property
    def retry_after_s(self) -> int:
        """When it is worth asking again, for answers of an engine that has too much to do and does not say itself."""
        return min(LONGEST_RETRY_AFTER_S, max(1, math.ceil(self.usual_s)))

    def _until_half_open_s(self) -> int:
        waits = [replica.breaker.retry_after_s for replica in self._numbers if replica.ready]
        return max(1, math.ceil(min(waits, default=RETRY_AFTER_S)))

    def _settle(self, replica: Replica) -> None:
        replica.breaker.opens_at = self.routing.breaker_failures
        replica.breaker.open_s = self.routing.breaker_open_s

    def _changed(self, replica: Replica) -> None:
        """It may be used, or no longer."""
        slot = self._numbers[replica]
        self._costs[slot] = self._cost(replica) if replica.usable else NEVER
        self._announce()

    def _loaded(self, replica: Replica) -> None:
        slot = self._numbers[replica]
        if self._costs[slot] != NEVER:
            self._costs[slot] = self._cost(replica)

    def _cost(self, replica: Replica) -> float:
        return (replica.load_tokens + replica.given_tokens * EVENNESS) / replica.weight

    def _announce(self) -> None:
        set_to(self._usable, any(cost != NEVER for cost in self._costs))
        set_to(self._ready, any(replica.ready and not replica.draining for replica in self._numbers))

    def _restarted(self, replica: Replica) -> None:
        self.index.forget(1 << self._numbers[replica])


def bits(mask: int) -> Iterable[int]:
    """0b101 -> 0, 2."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def set_to(event: asyncio.Event, value: bool) -> None:
    if value:
        event.set()
    else:
        event.clear()
