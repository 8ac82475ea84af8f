"""A served model without steps: a request passes to an engine and the answer back, byte for byte.

Nothing goes out before the answer has content, so whatever fails until then is mended elsewhere or becomes a clean
status. A stream that breaks later is continued by another replica where that is exact, and otherwise ends in an error
event: never silently, never with a `[DONE]` it did not earn.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from engine.affinity import hint_of
from engine.attempt import Asked, DeadlineOver, Limits, Source
from engine.continuation import is_exact
from engine.dispatch import Dispatch
from engine.pool import Pool
from engine.tokens import tokens_of
from penstock import metrics
from penstock.errors import BadRequest, EngineError
from serving.exchange import Exchange, Headers
from serving.wire import EVENT_STREAM, JSON, Dialect

if TYPE_CHECKING:
    from serving.stack import Served

FORWARDED = (b"accept", b"anthropic-version", b"anthropic-beta", b"traceparent", b"tracestate")
SESSION = b"x-session-id"
DEADLINE = b"x-request-timeout-s"
CONTINUABLE = (b"x-penstock-continuable", b"1")


class Relay:
    """`fallback` answers what this engine cannot, as long as nothing of an answer is out."""

    def __init__(self, name: str, pool: Pool, limits: Limits, fallback: "Served | None" = None) -> None:
        self.name = name
        self.pool = pool
        self.limits = limits
        self.fallback = fallback

    async def __call__(self, exchange: Exchange, body: Mapping[str, Any], dialect: Dialect) -> None:
        written = as_json(body)
        hint = hint_of(body, exchange.headers.get(SESSION))
        asked = Asked(exchange.path, body, forwarded(exchange), hint, deadline_of(exchange), written)
        if self.pool.routing.kv_events:
            asked.hint.token_ids = await self._tokens_of(asked)
        passing = Passing(exchange, dialect, asked)
        try:
            answer = await Dispatch(self.pool, asked, passing, self.limits, self.name).run()
        except EngineError as error:
            if self.fallback is None or exchange.status is not None or isinstance(error, DeadlineOver):
                raise
            metrics.fallbacks.inc(self.name, self.fallback.name)
            exchange.marks = [*exchange.marks, (b"x-penstock-fallback", self.fallback.name.encode())]
            return await self.fallback(exchange, {**body, "model": self.fallback.name}, dialect)
        if answer:
            exchange.send(200, [*JSON, *dialect.headers(exchange.request_id)], answer.body)

    async def _tokens_of(self, asked: Asked) -> Sequence[int]:
        """The prompt as the engines' own tokens; none where nobody says, so that the approximate index decides."""
        replica = next((replica for replica in self.pool.replicas if replica.usable), None)
        if replica is None:
            return ()
        try:
            return await tokens_of(asked.path, asked.body, replica)
        except EngineError:
            return ()


class Passing:
    """The receiver of a stream that goes to the client as it is."""

    def __init__(self, exchange: Exchange, dialect: Dialect, asked: Asked) -> None:
        self.exchange = exchange
        self.dialect = dialect
        self.asked = asked

    @property
    def source(self) -> Source | None:
        return self.exchange.source

    @source.setter
    def source(self, source: Source | None) -> None:
        self.exchange.source = source

    def begin(self, data: bytes) -> None:
        headers: Headers = [*EVENT_STREAM, *self.dialect.headers(self.exchange.request_id)]
        if is_exact(self.asked.path, self.asked.body):
            headers = [*headers, CONTINUABLE]
        self.exchange.start(200, headers)
        if data:
            self.exchange.write(data)

    def more(self, data: bytes) -> None:
        self.exchange.write(data)

    def end(self, data: bytes) -> None:
        self.exchange.end(data)


def forwarded(exchange: Exchange) -> bytes:
    """The header lines that the engine gets: the caller's key, cookies and the rest are not among them."""
    lines = b"x-request-id: %b\r\n" % exchange.request_id.encode()
    headers = exchange.headers
    for name in FORWARDED:
        value = headers.get(name)
        if value is not None:
            lines += b"%b: %b\r\n" % (name, value)
    return lines


def as_json(body: Mapping[str, Any]) -> bytes:
    """What was checked, written anew. Raises BadRequest for what can be read but is too deep to be written."""
    try:
        return orjson.dumps(body)
    except TypeError as error:
        raise BadRequest("the body is nested too deeply: 254 levels at most") from error


def deadline_of(exchange: Exchange) -> float:
    """When the caller no longer wants the answer, by the loop's clock: the same for a fallback. Raises BadRequest."""
    given = exchange.headers.get(DEADLINE)
    if given is None:
        return math.inf
    if exchange.deadline is not None:
        return exchange.deadline
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise BadRequest(f"{DEADLINE.decode()} must be a number of seconds, not {given.decode('latin-1')!r}")
    exchange.deadline = asyncio.get_running_loop().time() + seconds
    return exchange.deadline
