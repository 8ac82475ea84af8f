"""Whether Redis can be used for limits, and what the log says where it cannot.

After FAILURES in a row nobody asks it any more until it has answered a probe, one every PROBE_S. To a request it is the
same whether Redis is silent or refuses (no memory left, read only, a key or a script that is not as it was); who is to
mend it is told which, in Redis' own words, once in TELL_EVERY_S for each kind of error.
"""

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable

from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, ResponseError

from penstock import metrics
from serving.exchange import nothing

log = logging.getLogger(__name__)

FAILURES = 3
PROBE_S = 1.0
TELL_EVERY_S = 60.0
REFUSALS = (ResponseError, AuthenticationError, AuthorizationError, BusyLoadingError)
CODE = re.compile(r"[A-Z]{3,16}(?= )")
NAME = re.compile(r"penstock:[^\s,'\"]*")
MOST_WORDS_CHARS = 300


class RedisHealth:
    """`probe` asks Redis something and raises what goes wrong; `meanwhile`: what becomes of limits without it."""

    def __init__(self, probe: Callable[[], Awaitable[object]], meanwhile: str) -> None:
        self.is_up = True
        self.when_lost: Callable[[], object] = nothing
        self.when_back: Callable[[], object] = nothing
        self._probe = probe
        self._meanwhile = meanwhile
        self._failures = 0
        self._told: dict[str, float] = {}
        self._probing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        metrics.limits_shared.set(1)
        if error := await self._asked():
            self._give_up(error)

    async def close(self) -> None:
        if self._probing:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    def worked(self) -> None:
        self._failures = 0

    def failed(self, error: Exception) -> None:
        """A call has, whether Redis was silent or refused it."""
        metrics.redis_failures.inc()
        if isinstance(error, REFUSALS):
            self.refused(error)
        self._failures += 1
        if self._failures >= FAILURES and self.is_up:
            self._give_up(error)

    def refused(self, error: Exception) -> None:
        """Something was, if not all of a call: told, and otherwise as if there had been no answer."""
        kind = kind_of(error)
        metrics.redis_refusals.inc(kind)
        if self._is_news(kind):
            log.error("Redis refuses what it is asked for limits: %s", words_of(error))

    def _is_news(self, what: str) -> bool:
        now = asyncio.get_running_loop().time()
        is_news = now >= self._told.get(what, -math.inf) + TELL_EVERY_S
        if is_news:
            self._told[what] = now
        return is_news

    def _give_up(self, error: Exception) -> None:
        self.is_up = False
        metrics.limits_shared.set(0)
        refused, kind = isinstance(error, REFUSALS), kind_of(error)
        is_news = not refused or self._is_news(f"lost by {kind}")  # one that answers a probe alone is lost every second
        if is_news:
            what = "refuses" if refused else "does not answer"
            log.error("Redis %s (%s): limits %s until it does", what, kind, self._meanwhile)
        self._probing = asyncio.get_running_loop().create_task(self._wait_for_it(is_news))
        self.when_lost()

    async def _wait_for_it(self, is_news: bool) -> None:
        await asyncio.sleep(PROBE_S)
        while await self._asked():
            await asyncio.sleep(PROBE_S)
        self.is_up, self._failures, self._probing = True, 0, None
        metrics.limits_shared.set(1)
        if is_news:
            log.warning("Redis answers again: limits are shared")
        self.when_back()

    async def _asked(self) -> Exception | None:
        try:
            await self._probe()
        except Exception as error:  # without the next probe it would be lost for ever
            if isinstance(error, REFUSALS):
                self.refused(error)
            log.debug("Redis does not answer: %s", type(error).__name__)
            return error
        return None


def kind_of(error: Exception) -> str:
    """Redis' own code where its client has left it, else the client's name for it: WRONGTYPE, OutOfMemoryError."""
    code = CODE.match(str(error))
    return code[0] if code and isinstance(error, REFUSALS) else type(error).__name__


def words_of(error: Exception) -> str:
    """What Redis said, without whose account it was about."""
    words = NAME.sub("penstock:[...]", str(error)[:MOST_WORDS_CHARS]).replace("\n", " ")
    return f"{type(error).__name__}: {words}"
