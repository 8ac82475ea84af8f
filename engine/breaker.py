"""When to leave a replica alone that answers, but badly: a circuit breaker.

After `failures` in a row it opens: the replica gets nothing for `open_s`, twice as long each time, then one request
(half-open), whose end decides. What a probe says does not close it: a replica may answer its probes and still fail
every generation.
"""

import asyncio
from collections.abc import Callable
from typing import Literal

LONGEST_OPEN_S = 30.0

State = Literal["closed", "open", "half-open", "probing"]


class Breaker:
    """`changed` is called whenever `admits` may have changed."""

    def __init__(self, failures: int, open_s: float, changed: Callable[[], None]) -> None:
        self.state: State = "closed"
        self.opens_at = failures
        self.open_s = open_s
        self.opened = 0
        self._changed = changed
        self._in_a_row = 0
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def admits(self) -> bool:
        return self.state in ("closed", "half-open")

    @property
    def retry_after_s(self) -> float:
        """Until a request is let through again."""
        return max(0.0, self._until - asyncio.get_running_loop().time()) if self.state == "open" else 0.0

    def taken(self) -> bool:
        """A request goes there. Returns whether it is the trial: of a half-open breaker the only one until decided."""
        if self.state != "half-open":
            return False
        self._become("probing")
        return True

    def succeeded(self) -> None:
        self._in_a_row = 0
        if self.state != "closed":
            self.close()
            self.opened = 0
            self._become("closed")

    def began(self) -> None:
        """An answer has begun, whose end may be far. It decides the trial; how answers end is still counted."""
        if self.state == "probing":
            self.succeeded()

    def failed(self, trial: bool = False) -> None:
        """`trial`: it was the one request that was let through."""
        self._in_a_row += 1
        if (trial and self.state == "probing") or (self.state == "closed" and self._in_a_row >= self.opens_at):
            self._open()

    def undecided(self) -> None:
        """The trial ended without saying anything about the replica: its client left, or the fault was its own."""
        if self.state == "probing":
            self._become("half-open")

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _open(self) -> None:
        loop = asyncio.get_running_loop()
        wait_s = min(LONGEST_OPEN_S, self.open_s * 2 ** min(self.opened, 10))
        self.opened += 1
        self.close()
        self._until = loop.time() + wait_s
        self._timer = loop.call_later(wait_s, self._become, "half-open")
        self._become("open")

    def _become(self, state: State) -> None:
        self.state = state
        self._changed()
