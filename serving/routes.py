"""The routes: what each takes, who may use it, and those that this process answers itself."""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from penstock import metrics
from penstock.callers import Scope
from serving import bodies
from serving.bodies import Routed
from serving.call import Call
from serving.exchange import Exchange
from serving.models import described, described_for_anthropic, listed
from serving.openapi import document
from serving.wire import ANTHROPIC, JSON, OPENAI, RESPONSES, Dialect

if TYPE_CHECKING:
    from serving.app import Gateway

MODEL_PREFIX = "/v1/models/"
EACH_MODEL = "/v1/models/{id}"
SHARED = frozenset({"/v1/models"})


@dataclass(frozen=True)
class Route:
    """`shape` is what the body must be; a route without one reads no body. `open`: no key is asked for; `scope`: what
    a key must have, None where any will do."""

    method: str
    dialect: Dialect = OPENAI
    shape: type[Routed] | None = None
    control: Callable[["Gateway", Call], Coroutine[Any, Any, None]] | None = None
    open: bool = False
    scope: Scope | None = "generate"


async def health(gateway: "Gateway", call: Call) -> None:
    """Whether this process answers; it does if this runs."""
    call.exchange.send(200, JSON, b'{"status":"ok"}')


async def ready(gateway: "Gateway", call: Call) -> None:
    """Whether requests should be sent here: `Stack.ready`, and no shutdown runs. `waiting`: models whose adapters are
    on their way to engines elsewhere."""
    stack = gateway.stack
    up = stack is not None and stack.ready and not gateway.draining
    said = {
        "ready": up,
        "engines": {name: pool.ready for name, pool in stack.pools.items()} if stack else {},
        "waiting": sorted(stack.versions.cold) if stack else [],
    }
    call.exchange.send(200 if up else 503, JSON, orjson.dumps(said))


async def figures(gateway: "Gateway", call: Call) -> None:
    head = [(b"content-type", metrics.CONTENT_TYPE.encode())]
    call.exchange.send(200, head, metrics.text(await gateway.figures()))


async def models(gateway: "Gateway", call: Call) -> None:
    exchange = call.exchange
    named = {name: gateway.known(name, call.caller) for name in gateway.models_for(call.caller)}
    exchange.send(200, JSON, orjson.dumps(listed(named, gateway.began, exchange.headers)))


async def model(gateway: "Gateway", call: Call) -> None:
    exchange = call.exchange
    name = exchange.path.removeprefix(MODEL_PREFIX)
    gateway.model(name, call.caller)
    describe = described_for_anthropic if b"anthropic-version" in exchange.headers else described
    exchange.send(200, JSON, orjson.dumps(describe(name, gateway.began, gateway.known(name, call.caller))))


async def openapi(gateway: "Gateway", call: Call) -> None:
    """What this gateway takes, as configured now; made when it is first asked for."""
    if not gateway.document:
        gateway.document = orjson.dumps(document({**ROUTES, EACH_MODEL: ONE_MODEL}, gateway.config))
    call.exchange.send(200, JSON, gateway.document)


ONE_MODEL = Route("GET", control=model, scope=None)
ROUTES: Mapping[str, Route] = {
    "/health": Route("GET", control=health, open=True),
    "/ready": Route("GET", control=ready, open=True),
    "/metrics": Route("GET", control=figures, scope="metrics"),
    "/openapi.json": Route("GET", control=openapi, scope=None),
    "/v1/models": Route("GET", control=models, scope=None),
    "/v1/chat/completions": Route("POST", shape=bodies.ChatCompletions),
    "/v1/completions": Route("POST", shape=bodies.Completions),
    "/v1/embeddings": Route("POST", shape=bodies.Embeddings),
    "/v1/rerank": Route("POST", shape=bodies.Rerank),
    "/v1/score": Route("POST", shape=bodies.Score),
    "/tokenize": Route("POST", shape=bodies.Tokenize),
    "/detokenize": Route("POST", shape=bodies.Detokenize),
    "/v1/moderations": Route("POST", shape=bodies.Moderations),
    "/v1/responses": Route("POST", RESPONSES, bodies.Responses),
    "/v1/messages": Route("POST", ANTHROPIC, bodies.Messages),
    "/v1/messages/count_tokens": Route("POST", ANTHROPIC, bodies.CountTokens),
}


def route_name(path: str) -> str:
    """The path as a label: a bounded set, whatever is asked for."""
    return path if path in ROUTES else EACH_MODEL if path.startswith(MODEL_PREFIX) else "other"


def dialect_of(exchange: Exchange) -> Dialect:
    """Of the route; of the caller where a route serves both families, or there is none."""
    if exchange.path in ROUTES and exchange.path not in SHARED:
        return ROUTES[exchange.path].dialect
    return ANTHROPIC if b"anthropic-version" in exchange.headers or exchange.path.startswith("/v1/messages") else OPENAI


# What is carried without ASGI, by the bytes of the request line.
HOT_PATHS: Mapping[bytes, str] = {path.encode(): path for path, route in ROUTES.items() if route.shape}
