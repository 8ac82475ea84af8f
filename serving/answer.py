"""A composed model: steps around an engine's `Chat`, behind every route that it can answer."""

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import orjson

from penstock.callers import LOCAL
from penstock.chat import Chat, ChatRequest, Delta, Emit, Reply, Usage
from penstock.errors import BadRequest
from penstock.steps import Circumstances, circumstances
from serving.composing import PLAIN, Composition
from serving.exchange import Exchange, Headers
from serving.fields import TEXT, TOKEN_LIMITS
from serving.inputs import changed
from serving.ledger import Cost
from serving.meter import MOST_ANSWERS, MOST_CHOSEN_ANSWERS, Meter
from serving.relay import Relay, as_json
from serving.surfaces import SURFACES, Shape
from serving.wire import EVENT_STREAM, JSON, Dialect

SILENCE_S = 10.0
"""After so long without an event a stream says that it is alive."""


@dataclass(frozen=True, slots=True)
class Asking:
    """The request that runs, for whatever a step asks beside its own `Chat`."""

    exchange: Exchange
    body: Mapping[str, Any]
    meter: Meter


asking: ContextVar[Asking] = ContextVar("asking")


class Answer:
    """`base` is what the steps stand around: an engine's relay, or any `Chat`. `chosen`: the steps as the caller has
    written them, where these are not the model's own."""

    def __init__(
        self,
        name: str,
        base: Chat | Relay,
        composition: Composition = PLAIN,
        budget: int | None = None,
        chosen: bytes = b"",
    ) -> None:
        self.name = name
        self.base = base
        self.composition = composition
        self.budget = budget
        self.chosen = chosen

    @property
    def version(self) -> str | None:
        return self.base.version if isinstance(self.base, Relay) else None

    def chat(self, exchange: Exchange, body: Mapping[str, Any], meter: Meter, *, own: bool = True) -> Chat:
        """For one request; not its `own` where a step of another model asks for it."""
        base = self.base
        chat = base.chat(exchange, body, meter, own=own) if isinstance(base, Relay) else meter.around(base)
        if body.get("prompt") and exchange.path != TEXT:
            chat = unprompted(chat)
        return self.composition.around(chat, meter.between)

    async def __call__(self, exchange: Exchange, body: Mapping[str, Any], dialect: Dialect) -> None:
        surface = SURFACES.get(exchange.path)
        if surface is None:
            if exchange.path in TOKEN_LIMITS:
                raise BadRequest(f"the model {self.name!r} is composed of steps, and does not serve {exchange.path}")
            return await self._pass_on(exchange, body, dialect)
        as_json([[[[body]]]])  # or refused: it will be written again, up to four levels deeper
        request, shape = surface(body, self.name, exchange.request_id)
        meter = self._meter()
        exchange.cost = Cost(meter=meter, streamed=bool(body.get("stream")))
        asking.set(Asking(exchange, body, meter))
        self._tell(exchange)
        chat = metered(self.chat(exchange, body, meter), meter)
        headers = dialect.headers(exchange.request_id)
        if body.get("stream"):
            await Streaming(exchange, shape, [*EVENT_STREAM, *headers]).run(chat, request)
        else:
            reply = await chat(request, unheard)
            exchange.send(200, [*JSON, *headers], orjson.dumps(shape.whole(reply)))

    async def _pass_on(self, exchange: Exchange, body: Mapping[str, Any], dialect: Dialect) -> None:
        """What generates nothing is the engine's, once its texts have passed the steps that look at them."""
        if not isinstance(self.base, Relay):
            raise BadRequest(f"the model {self.name!r} does not serve {exchange.path}", param="model")
        if self.composition.inputs:
            meter = self._meter()
            exchange.cost = Cost(meter=meter)  # what its guards ask, until the engine is asked beside them
            asking.set(Asking(exchange, body, meter))
            self._tell(exchange)
            body = await changed(exchange.path, body, self.composition.inputs)
        await self.base(exchange, body, dialect)

    def _meter(self) -> Meter:
        return Meter(self.budget, MOST_CHOSEN_ANSWERS if self.chosen else MOST_ANSWERS)

    def _tell(self, exchange: Exchange) -> None:
        """The steps, where they are."""
        now = Circumstances(exchange.request_id, self.name, exchange.path, exchange.caller or LOCAL)
        exchange.verdicts = now.verdicts
        circumstances.set(now)


class Streaming:
    """An answer as the events of a stream, which begins with the first of them: until then an error is a status."""

    def __init__(self, exchange: Exchange, shape: Shape, headers: Headers) -> None:
        self.exchange = exchange
        self.shape = shape
        self.headers = headers
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()

    async def run(self, chat: Chat, request: ChatRequest) -> None:
        self._timer = self._loop.call_later(SILENCE_S, self._look)
        self.exchange.failing = self.shape.failed
        try:
            reply = await chat(request, self.emit)
        finally:
            self._timer.cancel()
        self._begin()
        self.exchange.end(self.shape.last(reply))

    async def emit(self, delta: Delta) -> None:
        self._begin()
        self._write(self.shape.piece(delta))
        await self.exchange.drained()

    def _begin(self) -> None:
        if self.exchange.status is None:
            self.exchange.start(200, self.headers)
            self._write(self.shape.first())

    def _write(self, events: bytes) -> None:
        if events:  # nothing, as a chunk, would be the end
            self.exchange.write(events)
            self._last = self._loop.time()

    def _look(self) -> None:
        silent_s = self._loop.time() - self._last
        if silent_s >= SILENCE_S:
            self._begin()
            self._write(self.shape.alive())
            silent_s = 0.0
        self._timer = self._loop.call_later(SILENCE_S - silent_s, self._look)


def unprompted(chat: Chat) -> Chat:
    """Under the steps: a stored prompt that none of them has laid would be ignored by the engine."""

    async def asked(request: ChatRequest, emit: Emit) -> Reply:
        if getattr(request, "prompt", None):
            raise BadRequest("prompt: no step of this model lays stored prompts", param="prompt")
        return await chat(request, emit)

    return asked


def metered(chat: Chat, meter: Meter) -> Chat:
    """An answer that was cut off knows nothing of what it has cost, and none of what guards have asked; the meter
    does."""

    async def answered(request: ChatRequest, emit: Emit) -> Reply:
        reply = await chat(request, emit)
        usage = reply.usage if reply.usage != Usage() else meter.own()[0]
        return replace(reply, usage=usage + meter.guards())

    return answered


async def unheard(delta: Delta) -> None:
    """The whole answer is sent at its end."""
