"""Passes a request to an engine and the answer back, byte for byte; an error is put into the caller's dialect.

Nothing goes out before the engine's first event has come, so whatever fails until then still becomes a clean status,
after one more try on a replica that has been looked at (a time-out is not tried again). A stream that breaks later
ends in an error event: never silently, never with a `[DONE]` it did not earn.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx2
import orjson

from engine import sse
from engine.failures import from_answer
from engine.pool import Pool
from engine.replica import Replica
from penstock.config import Gateway
from penstock.errors import BadRequest, EngineError, EngineTimeout, EngineUnavailable, PenstockError, StreamInterrupted
from serving.exchange import Exchange
from serving.wire import EVENT_STREAM, Dialect

log = logging.getLogger(__name__)

FORWARDED = (b"accept", b"anthropic-version", b"anthropic-beta", b"traceparent", b"tracestate")
TRIES = 2
PROMPT_FIELDS = {"/v1/completions": "prompt", "/v1/responses": "input"}


class Relay:
    """A served model without steps: its engine's own answers."""

    def __init__(self, name: str, pool: Pool, limits: Gateway) -> None:
        self.name = name
        self.pool = pool
        self.limits = limits

    async def __call__(self, exchange: Exchange, raw: bytes, dialect: Dialect) -> None:
        for last_try in (number == TRIES for number in range(1, TRIES + 1)):
            async with self.pool.lease() as replica:
                try:
                    return await self._once(exchange, replica, raw, dialect)
                except EngineError as error:
                    replica.suspect()
                    if last_try or exchange.status is not None or isinstance(error, EngineTimeout):
                        raise
                    log.warning("replica %s failed before its first event, trying once more: %s", replica.name, error)

    async def _once(self, exchange: Exchange, replica: Replica, raw: bytes, dialect: Dialect) -> None:
        body = renamed(raw, replica.model) if replica.model else raw
        headers = {
            name.decode(): exchange.headers[name].decode("latin-1") for name in FORWARDED if name in exchange.headers
        }
        headers |= {"content-type": "application/json", "x-request-id": exchange.request_id}
        request = replica.client.build_request("POST", exchange.path, content=body, headers=headers)
        try:
            async with asyncio.timeout(self.limits.first_byte_timeout_s):
                response = await replica.client.send(request, stream=True)
        except TimeoutError as error:
            raise EngineTimeout(f"the engine gave no answer within {self.limits.first_byte_timeout_s:g} s") from error
        except httpx2.ConnectError as error:
            raise EngineUnavailable("the engine does not accept connections", retry_after_s=5) from error
        except httpx2.HTTPError as error:
            raise EngineError("the connection to the engine broke before its answer") from error
        try:
            await self._pass_on(exchange, response, dialect)
        finally:
            await response.aclose()

    async def _pass_on(self, exchange: Exchange, response: httpx2.Response, dialect: Dialect) -> None:
        content_type = response.headers.get("content-type", "application/json")
        if response.status_code == 200 and content_type.startswith("text/event-stream"):
            return await self._stream(exchange, response, dialect)
        try:
            async with asyncio.timeout(self.limits.first_byte_timeout_s):
                body = await response.aread()
        except TimeoutError as error:
            raise EngineTimeout("the engine's answer stopped coming") from error
        except httpx2.HTTPError as error:
            raise EngineError("the engine's answer broke off") from error
        if response.status_code != 200:
            raise self._refused(exchange.path, response, body)
        await exchange.send(
            200, [(b"content-type", content_type.encode()), *dialect.headers(exchange.request_id)], body
        )

    def _refused(self, path: str, response: httpx2.Response, body: bytes) -> PenstockError:
        unknown_route = response.status_code in (404, 405) and b'"detail"' in body
        if unknown_route:
            return BadRequest(
                f"the model {self.name!r} does not serve {path}: its engine has no such route", param="model"
            )
        error = from_answer(response.status_code, body, response.headers.get("retry-after"))
        if error.param == "messages":
            error.param = PROMPT_FIELDS.get(path, error.param)
        return error

    async def _stream(self, exchange: Exchange, response: httpx2.Response, dialect: Dialect) -> None:
        wait_s = self.limits.first_byte_timeout_s
        async with aclosing(self._events(response, dialect)) as events:
            while True:
                try:
                    async with asyncio.timeout(wait_s):
                        event = await anext(events)
                except TimeoutError as error:
                    raise EngineTimeout(f"the engine was silent for {wait_s:g} s") from error
                except StopAsyncIteration:
                    break
                if exchange.status is None:
                    if not sse.parse(event).data:  # a heartbeat says that it lives, not that it will answer
                        continue
                    await exchange.start(200, [*EVENT_STREAM, *dialect.headers(exchange.request_id)])
                    wait_s = self.limits.stall_timeout_s
                await exchange.write(event)
        await exchange.end()

    async def _events(self, response: httpx2.Response, dialect: Dialect) -> AsyncGenerator[bytes, None]:
        """Whole events up to the one that ends the stream properly. Raises what goes wrong before it."""
        splitter = sse.EventSplitter()
        try:
            async for piece in response.aiter_raw():
                for event in splitter.feed(piece):
                    error = dialect.error_in(event)
                    if error:
                        raise error
                    if dialect.is_last(event):
                        yield dialect.last(event)
                        return
                    yield event
        except httpx2.HTTPError as error:
            raise StreamInterrupted("the engine's stream broke off") from error
        raise StreamInterrupted("the engine's stream ended before the answer did")


def renamed(raw: bytes, model: str) -> bytes:
    """The body with the name by which the replica knows the model."""
    return orjson.dumps(orjson.loads(raw) | {"model": model})
