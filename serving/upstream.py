"""The engine under a composed model, as a `Chat`, for one request: what steps ask goes where the model leads."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from engine.affinity import hint_of
from engine.asked import Asked, DeadlineOver, Source
from engine.dispatch import Dispatch
from engine.openai import OpenAIChat, usage_of
from penstock import metrics
from penstock.chat import ChatRequest, Delta, Emit, Reply
from penstock.errors import EngineError
from serving.exchange import Exchange
from serving.forwarded import DEADLINE, OF_ANY_CALL, deadline_of, forwarded
from serving.meter import Meter
from serving.split import SESSION

if TYPE_CHECKING:
    from serving.relay import Relay


class Upstream:
    """Every call is routed anew, so that a version which moves is followed in the midst of an answer. What this engine
    cannot answer, as long as nothing has come of it, the relay's fallback does."""

    def __init__(self, relay: "Relay", exchange: Exchange, body: Mapping[str, Any], meter: Meter) -> None:
        self.relay = relay
        self.exchange = exchange
        self.body = body
        self.meter = meter

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply:
        relay, exchange = self.relay, self.exchange
        route = relay.route(exchange, self.body)
        self._mark(route.version, route.marks)
        if relay.trial and exchange.cost:
            exchange.cost.tally = relay.trial.tally(route)
        chat = OpenAIChat(
            route.pool,
            relay.limits,
            name=route.name,
            headers=forwarded(exchange, OF_ANY_CALL),
            session=exchange.headers.get(SESSION),
            **({"deadline": deadline_of(exchange)} if DEADLINE in exchange.headers else {}),
        )
        metered = self.meter.around(chat)
        request = request.model_copy(update={"model": relay.name})
        other = relay.fallback
        if other is None:
            return await metered(request, emit)
        began = False

        async def heard(delta: Delta) -> None:
            nonlocal began
            began = True
            await emit(delta)

        try:
            return await metered(request, heard)
        except EngineError as error:
            if began or isinstance(error, DeadlineOver):
                raise
            metrics.fallbacks.inc(relay.name, other.name)
            if exchange.status is None:
                exchange.marks = [*exchange.marks, (b"x-penstock-fallback", other.name.encode())]
            return await other.chat(exchange, {**self.body, "model": other.name}, self.meter)(request, emit)

    def _mark(self, version: str | None, marks: Any) -> None:
        """The answer's headers tell the version that was asked first."""
        exchange = self.exchange
        if exchange.version is None and exchange.status is None:
            exchange.version = version
            exchange.marks = [*exchange.marks, *marks]


class Unstreamed:
    """A receiver for answers that are no streams."""

    source: Source | None = None

    def begin(self, data: bytes) -> None: ...

    def more(self, data: bytes) -> None: ...

    def end(self, data: bytes) -> None: ...

    def used(self, usage: Mapping[str, Any] | None, texts: Sequence[Sequence[str]]) -> None: ...


async def whole(relay: "Relay", path: str, body: Mapping[str, Any], meter: Meter | None) -> dict[str, Any]:
    """What the engine answers there, as JSON; what it says that this has cost goes to `meter`. Raises PenstockError."""
    route = relay.current
    asked = Asked(path, {**body, "model": relay.name}, hint=hint_of(body), name=route.name)
    answer = await Dispatch(route.pool, asked, Unstreamed(), relay.limits, relay.name).run()
    try:
        document: dict[str, Any] = orjson.loads(answer.body if answer else b"")
    except ValueError as error:
        raise EngineError(f"{relay.name}'s engine answers {path} with no JSON") from error
    if meter and isinstance(document, dict) and isinstance(document.get("usage"), dict):
        meter.add(usage_of(document["usage"]))
    return document
