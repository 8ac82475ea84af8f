"""One server that generates: where it is, whether it can be used, how much it is doing."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from engine.breaker import Breaker
from engine.connection import Client
from penstock import metrics

if TYPE_CHECKING:
    from engine.attempt import Attempt

BREAKER_FAILURES = 5
BREAKER_OPEN_S = 1.0
LOOK_S = 0.1
DRAIN_POLL_S = 0.05


class Holdings(Protocol):
    """What an engine says that it has in its prefix cache."""

    def matched(self, tokens: Sequence[int], salt: str = "") -> int:
        """How many of the first tokens."""


class Replica:
    """`ready` is decided by whoever watches it; `suspect` asks that watcher to look again now."""

    def __init__(self, name: str, client: Client, *, weight: float = 1.0) -> None:
        self.name = name
        self.client = client
        self.weight = weight
        self.ready = False
        self.draining = False
        self.outstanding = 0
        self.load_tokens = 0.0
        self.given_tokens = 0.0
        self.model: str | None = None  # the model's name there, where it differs from the served one
        self.names: Sequence[str] = ()  # those that an engine started here was given: it learns no others
        self.cached: Holdings | None = None  # what it has in its cache, where it tells
        self.suspect: Callable[[], None] = lambda: None
        self.changed: Callable[[Replica], None] = lambda replica: None  # whether it may be used
        self.loaded: Callable[[Replica], None] = lambda replica: None
        self.restarted: Callable[[Replica], None] = lambda replica: None
        self._attempts: set[Attempt] = set()
        self._looking: asyncio.TimerHandle | None = None
        self.breaker = Breaker(BREAKER_FAILURES, BREAKER_OPEN_S, self._breaker_changed)

    @classmethod
    def at(cls, name: str, url: str, api_key: str | None = None, *, weight: float = 1.0) -> Self:
        """`http://host:8000` or `unix:/run/engine.sock`."""
        return cls(name, Client(url, api_key), weight=weight)

    @classmethod
    def behind(cls, name: str, socket: Path) -> Self:
        return cls.at(name, f"unix:{socket}")

    @property
    def labels(self) -> tuple[str, str]:
        """`base-0` -> ("base", "0"), for metrics."""
        engine, _, number = self.name.rpartition("-")
        return engine, number

    @property
    def usable(self) -> bool:
        """Whether a new request may go there now."""
        return self.ready and not self.draining and self.breaker.admits

    def serve(self, served: Sequence[str]) -> None:
        """These models are asked for there: by the names that it knows."""
        known = not self.names or all(name in self.names for name in served)
        self.model = None if known else self.names[0]

    def set_ready(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            self.changed(self)
        metrics.engine_ready.set(ready, *self.labels)

    def ended(self, why: str) -> None:
        """Its process is gone, or answers nothing: requests that have no content from it go elsewhere at once."""
        self.set_ready(False)
        for attempt in list(self._attempts):
            attempt.forsake(why)
        self.restarted(self)

    def watch(self, attempt: "Attempt") -> None:
        """Looks at it ten times a second. One timer looks at all of them, for a timer each costs more."""
        self._attempts.add(attempt)
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def unwatch(self, attempt: "Attempt") -> None:
        self._attempts.discard(attempt)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        try:
            for attempt in list(self._attempts):
                attempt.look(now)
        finally:  # whatever one of them runs into, the others have their limits too
            self._looking = loop.call_later(LOOK_S, self._look) if self._attempts else None

    def take(self, tokens: float) -> bool:
        """A request of about this size goes there. Returns whether it is the breaker's trial."""
        self.outstanding += 1
        self.load_tokens += tokens
        self.given_tokens += tokens
        self.loaded(self)
        return self.breaker.taken()

    def give_back(self, tokens: float) -> None:
        self.outstanding -= 1
        self.load_tokens -= tokens
        self.loaded(self)

    def drain(self) -> None:
        """Nothing new goes there any more."""
        self.draining = True
        self.changed(self)

    def is_asked_for(self, name: str) -> bool:
        """Whether a request for the model of this name runs there."""
        return any(attempt.asked.name == name for attempt in self._attempts)

    async def drained(self, within_s: float) -> None:
        """Returns when nothing runs there any more, at the latest after `within_s`."""
        deadline = asyncio.get_running_loop().time() + within_s
        while self.outstanding and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(DRAIN_POLL_S)

    def forget(self) -> None:
        """It has left for good: its figures too."""
        for gauge in (metrics.engine_ready, metrics.breaker_open, metrics.engine_start_seconds):
            gauge.forget(*self.labels)
        metrics.engine_gauge.forget_all(*self.labels)

    def close(self) -> None:
        self.ready = False
        self.changed(self)
        self.breaker.close()
        self.client.close()

    def _breaker_changed(self) -> None:
        metrics.breaker_open.set(not self.breaker.admits, *self.labels)
        self.changed(self)
