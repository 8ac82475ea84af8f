"""The engine under a composed model, as a `Chat`, for one request: what steps ask goes where the model leads."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from engine.affinity import hint_of
from engine.asked import Asked, DeadlineOver, Source
from engine.dispatch import Dispatch
from engine.openai import OpenAIChat, usage_of
from engine.route import VERSION, Route
from penstock import metrics
from penstock.chat import ChatRequest, Delta, Emit, Reply
from penstock.errors import EngineError
from serving.exchange import Exchange
from serving.forwarded import DEADLINE, OF_ANY_CALL, deadline_of, forwarded
from serving.meter import Meter
from serving.split import SESSION

if TYPE_CHECKING:
    from serving.relay import Relay


FALLBACK = b"x-penstock-fallback"


class Upstream:
    """Every call is routed anew, so that a version which moves is followed in the midst of an answer. What this engine
    cannot answer, as long as nothing has come of it, the relay's fallback does.

    The answer's headers and a canary's figures are those of the request's `own` model, whatever others its steps ask.
    """

    def __init__(
        self, relay: "Relay", exchange: Exchange, body: Mapping[str, Any], meter: Meter, *, own: bool = True
    ) -> None:
        self.relay = relay
        self.exchange = exchange
        self.body = body
        self.meter = meter
        self.own = own

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply:
        relay, exchange = self.relay, self.exchange
        route = relay.route(exchange, self.body)
        if self.own:
            self._mark(route)
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
            if self.own:
                self._failed(error, (FALLBACK, other.name.encode()))
            body = {**self.body, "model": other.name}
            return await other.chat(exchange, body, self.meter, own=self.own)(request, emit)

    def _mark(self, route: Route) -> None:
        """The answer's headers tell the version that was asked first."""
        exchange, trial = self.exchange, self.relay.trial
        if exchange.version is None and exchange.status is None and not marked(exchange, FALLBACK):
            exchange.version = route.version
            exchange.marks = [*exchange.marks, *route.marks]
        if trial and exchange.cost and not marked(exchange, FALLBACK):
            exchange.cost.tally = trial.tally(route)

    def _failed(self, error: EngineError, mark: tuple[bytes, bytes]) -> None:
        """Another will answer: a canary is told now, and the headers say so."""
        exchange, cost = self.exchange, self.exchange.cost
        if cost and cost.tally:
            cost.tally.failed(cost, error)
            cost.tally = None
        if exchange.status is None:
            exchange.version = None
            exchange.marks = [*(each for each in exchange.marks if each[0] not in (VERSION, FALLBACK)), mark]


def marked(exchange: Exchange, name: bytes) -> bool:
    return any(each[0] == name for each in exchange.marks)


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
