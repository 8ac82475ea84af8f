"""The gateway's routes, and what happens around each: key, body, served model, errors, metrics, the access log.

An ASGI application. A handler sees only an `Exchange`: the generation routes are carried by the connection itself
(`serving/protocol.py`), everything else, and in tests these too, by ASGI.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import getrandbits

import orjson

from penstock import metrics
from penstock.config import Config
from penstock.config import nearest as nearest_name
from penstock.errors import (
    BodyTooLarge,
    BodyTooSlow,
    EngineUnavailable,
    MethodNotAllowed,
    ModelNotFound,
    PenstockError,
    UnknownUrl,
)
from penstock.log import access, request_id
from penstock.meters import Snapshot
from serving import bodies
from serving.bodies import Routed
from serving.exchange import AsgiExchange, Exchange, Receive, Scope, Send, nothing
from serving.keys import Keys
from serving.models import described, described_for_anthropic, listed
from serving.stack import Served, Stack
from serving.wire import ANTHROPIC, JSON, OPENAI, RESPONSES, Dialect

log = logging.getLogger(__name__)

GIVEN_ID = re.compile(rb"[\w.\-]{1,128}")
MODEL_PREFIX = "/v1/models/"
RETRY_AFTER_S = 5
SHARED = frozenset({"/v1/models"})
QUIET = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds by machines


@dataclass(frozen=True)
class Route:
    """`shape` is what the body must be; a route without one reads no body. `open`: no key is asked for."""

    method: str
    dialect: Dialect = OPENAI
    shape: type[Routed] | None = None
    control: Callable[["Gateway", Exchange], Awaitable[None]] | None = None
    open: bool = False


class Gateway:
    """Created before its engines run; `stack` is set once they are being started."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.hot_paths = HOT_PATHS
        self.keys = Keys(config.gateway.keys)
        self.stack: Stack | None = None
        self.draining = False
        self.began = int(time.time())
        self.figures: Callable[[], Awaitable[Snapshot]] = own_figures
        self._calls: set[Call] = set()

    def end_requests(self) -> None:
        """Ends what still runs, each with an error that says why: the shutdown waits no longer."""
        for call in self._calls:
            call.error = EngineUnavailable("this gateway is shutting down; try again", retry_after_s=RETRY_AFTER_S)
            call.task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3. A path of another protocol than HTTP is closed without an answer."""
        if scope["type"] == "http":
            exchange = AsgiExchange(scope, receive, send, self.config.gateway.stall_timeout_s)
            await exchange.carry(self.answer)

    async def answer(self, exchange: Exchange) -> None:
        """Serves one request from its first header to the access log, in a task of its own: a client that leaves, or
        the end of the shutdown's patience, cancels it."""
        exchange.request_id = id_of(exchange.headers)
        token = request_id.set(exchange.request_id)
        task = asyncio.current_task()
        assert task
        call = Call(route_name(exchange.path), task)
        exchange.on_gone = task.cancel
        self._calls.add(call)
        metrics.in_flight.inc()
        try:
            if not exchange.gone:
                await self._serve(exchange, call)
        except asyncio.CancelledError:
            if not exchange.gone and call.error is None:
                raise
        finally:
            exchange.on_gone = nothing
            self._calls.discard(call)
            self._account(exchange, call)
            request_id.reset(token)

    async def _serve(self, exchange: Exchange, call: "Call") -> None:
        try:
            await self._dispatch(exchange, call)
        except PenstockError as error:
            call.error = error
        except asyncio.CancelledError:
            if exchange.gone or call.error is None:
                raise
        except Exception as error:  # whatever it is, the caller gets an answer in its own shape, and the log the trace
            log.exception("unexpected error")
            call.error = PenstockError("something went wrong here; the request's id leads to the log")
            call.error.__cause__ = error
        if call.error and not exchange.gone:
            refuse(exchange, dialect_of(exchange), call.error)

    async def _dispatch(self, exchange: Exchange, call: "Call") -> None:
        route = self._route(exchange)
        if not route.open:
            self.keys.check(exchange.headers)
        if route.control:
            return await route.control(self, exchange)
        assert route.shape is not None
        limits = self.config.gateway
        raw = await exchange.body(limits.max_body_bytes, limits.receive_timeout_s)
        body = bodies.parse(raw, route.shape)
        served = self._model(body["model"])
        call.model = served.name
        await served(exchange, body, route.dialect)

    def _route(self, exchange: Exchange) -> Route:
        path = exchange.path
        route = ROUTES.get(path) or (ONE_MODEL if path.startswith(MODEL_PREFIX) else None)
        if route is None:
            raise UnknownUrl(f"there is no route {path}{nearest_name(path, list(ROUTES))}")
        if exchange.method != route.method:
            raise MethodNotAllowed(f"{path} takes {route.method}, not {exchange.method}", allow=route.method)
        return route

    def _model(self, name: str) -> Served:
        assert self.stack is not None
        served = self.stack.models.get(name)
        if served is None:
            raise ModelNotFound(
                f"the model {name!r} is not served here{nearest_name(name, self.stack.models)} (GET /v1/models)",
                param="model",
            )
        return served

    def _account(self, exchange: Exchange, call: "Call") -> None:
        took_s = time.perf_counter() - call.began
        status = exchange.status or 499
        metrics.in_flight.inc(by=-1)
        if exchange.gone:
            metrics.disconnects.inc(call.name)
        elif call.error and exchange.status == 200:
            metrics.interrupted.inc(call.model)
            log.error("stream ended in an error event: %s", call.error)
        metrics.requests.inc(call.name, call.model, status)
        metrics.seconds.observe(took_s, call.name)
        if exchange.first_byte_at is not None:
            metrics.first_byte_seconds.observe(exchange.first_byte_at - call.began, call.name)
        if exchange.path not in QUIET:
            access.served(
                exchange.request_id,
                exchange.method,
                call.name,
                call.model,
                status,
                took_s,
                call.error.code or call.error.type if call.error else None,
                exchange.gone,
            )

    async def health(self, exchange: Exchange) -> None:
        """Whether this process answers; it does if this runs."""
        exchange.send(200, JSON, b'{"status":"ok"}')

    async def ready(self, exchange: Exchange) -> None:
        """Whether requests should be sent here: every engine has a replica that generates, and no shutdown runs."""
        up = self.stack is not None and self.stack.ready and not self.draining
        engines = {name: pool.ready for name, pool in self.stack.pools.items()} if self.stack else {}
        exchange.send(200 if up else 503, JSON, orjson.dumps({"ready": up, "engines": engines}))

    async def metrics(self, exchange: Exchange) -> None:
        head = [(b"content-type", metrics.CONTENT_TYPE.encode())]
        exchange.send(200, head, metrics.text(await self.figures()))

    async def models(self, exchange: Exchange) -> None:
        assert self.stack is not None
        names = list(self.stack.models)
        exchange.send(200, JSON, orjson.dumps(listed(names, self.began, exchange.headers)))

    async def model(self, exchange: Exchange) -> None:
        name = exchange.path.removeprefix(MODEL_PREFIX)
        self._model(name)
        describe = described_for_anthropic if b"anthropic-version" in exchange.headers else described
        exchange.send(200, JSON, orjson.dumps(describe(name, self.began)))


@dataclass(eq=False, slots=True)
class Call:
    """A request under way: what the access log will say of it, and the task that serves it."""

    name: str
    task: asyncio.Task[None]
    model: str = ""
    error: PenstockError | None = None
    began: float = field(default_factory=time.perf_counter)


ONE_MODEL = Route("GET", control=Gateway.model)
ROUTES: Mapping[str, Route] = {
    "/health": Route("GET", control=Gateway.health, open=True),
    "/ready": Route("GET", control=Gateway.ready, open=True),
    "/metrics": Route("GET", control=Gateway.metrics),
    "/v1/models": Route("GET", control=Gateway.models),
    "/v1/chat/completions": Route("POST", shape=bodies.ChatCompletions),
    "/v1/completions": Route("POST", shape=bodies.Completions),
    "/v1/embeddings": Route("POST", shape=bodies.Embeddings),
    "/v1/rerank": Route("POST", shape=bodies.Rerank),
    "/v1/score": Route("POST", shape=bodies.Score),
    "/tokenize": Route("POST", shape=bodies.Tokenize),
    "/detokenize": Route("POST", shape=bodies.Detokenize),
    "/v1/responses": Route("POST", RESPONSES, bodies.Responses),
    "/v1/messages": Route("POST", ANTHROPIC, bodies.Messages),
    "/v1/messages/count_tokens": Route("POST", ANTHROPIC, bodies.CountTokens),
}


async def own_figures() -> Snapshot:
    """What this process has counted; with workers, their parent's sum takes its place."""
    return metrics.snapshot()


def route_name(path: str) -> str:
    """The path as a label: a bounded set, whatever is asked for."""
    return path if path in ROUTES else "/v1/models/{id}" if path.startswith(MODEL_PREFIX) else "other"


def dialect_of(exchange: Exchange) -> Dialect:
    """Of the route; of the caller where a route serves both families, or there is none."""
    if exchange.path in ROUTES and exchange.path not in SHARED:
        return ROUTES[exchange.path].dialect
    return ANTHROPIC if b"anthropic-version" in exchange.headers or exchange.path.startswith("/v1/messages") else OPENAI


# What is carried without ASGI, by the bytes of the request line.
HOT_PATHS: Mapping[bytes, str] = {path.encode(): path for path, route in ROUTES.items() if route.shape}


def id_of(headers: Mapping[bytes, bytes]) -> str:
    """The caller's own id where it is harmless, else a new one."""
    given = headers.get(b"x-request-id")
    return given.decode() if given and GIVEN_ID.fullmatch(given) else f"req_{getrandbits(128):032x}"


def refuse(exchange: Exchange, dialect: Dialect, error: PenstockError) -> None:
    """The error as a status while nothing is out, else as the stream's last event."""
    if exchange.status is not None:
        return exchange.end(dialect.error_event(error, exchange.request_id))
    headers = [*JSON, *dialect.headers(exchange.request_id)]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, BodyTooLarge | BodyTooSlow):
        headers.append((b"connection", b"close"))
    exchange.send(error.status, headers, orjson.dumps(dialect.error(error, exchange.request_id)))
