"""A composed model's answers: a `Chat` behind /v1/chat/completions and /v1/completions."""

import time
from collections.abc import Mapping
from typing import Any

import orjson

from penstock.chat import Chat, ChatRequest, Delta, Message, Reply, Usage
from penstock.errors import BadRequest
from serving.exchange import Exchange
from serving.ledger import Cost
from serving.wire import DONE_EVENT, EVENT_STREAM, JSON, ChatShape, Dialect, TextShape, data_event, usage

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


class Answer:
    """A served model that is a `Chat` rather than an engine's own routes."""

    def __init__(self, name: str, chat: Chat) -> None:
        self.name = name
        self.chat = chat

    async def __call__(self, exchange: Exchange, body: Mapping[str, Any], dialect: Dialect) -> None:
        request, shape = self._asked(exchange, body)
        if body.get("stream"):
            await self._stream(exchange, request, shape, Heard(exchange, body), usage_wanted(body))
        else:
            heard = Heard(exchange, body)
            reply = await self.chat(request, heard)
            heard.told(reply)
            exchange.send(200, JSON, orjson.dumps(shape.whole(reply)))

    def _asked(self, exchange: Exchange, body: Mapping[str, Any]) -> tuple[ChatRequest, ChatShape | TextShape]:
        created = int(time.time())
        if exchange.path == CHAT:
            return ChatRequest(**body), ChatShape(f"chatcmpl-{exchange.request_id}", self.name, created)
        if exchange.path == TEXT:
            prompt = body.get("prompt")
            if not isinstance(prompt, str):
                raise BadRequest(f"the model {self.name!r} takes one prompt, as a string", param="prompt")
            rest = {key: value for key, value in body.items() if key not in ("prompt", "messages")}
            request = ChatRequest(**rest, messages=[Message(role="user", content=prompt)])
            return request, TextShape(f"cmpl-{exchange.request_id}", self.name, created)
        raise BadRequest(f"the model {self.name!r} does not serve {exchange.path}", param="model")

    async def _stream(
        self,
        exchange: Exchange,
        request: ChatRequest,
        shape: ChatShape | TextShape,
        heard: "Heard",
        with_usage: bool,
    ) -> None:
        def begin() -> None:
            if exchange.status is None:
                exchange.start(200, EVENT_STREAM)
                first = shape.first()
                if first:
                    exchange.write(data_event(first))

        async def emit(delta: Delta) -> None:
            await heard(delta)
            begin()
            exchange.write(data_event(shape.piece(delta)))
            await exchange.drained()

        reply = await self.chat(request, emit)
        heard.told(reply)
        begin()
        tail = data_event(shape.last(reply)) + (data_event(shape.usage_chunk(reply)) if with_usage else b"")
        exchange.end(tail + DONE_EVENT)


class Heard:
    """An `Emit` that keeps what the answer costs, also if nobody is left to take it to its end: the pieces that came,
    until the reply tells the sum of all calls that it has taken."""

    def __init__(self, exchange: Exchange, body: Mapping[str, Any]) -> None:
        self._text: list[str] = []
        exchange.cost = self._cost = Cost(texts=[self._text], body=body)

    async def __call__(self, delta: Delta) -> None:
        self._text.append(text_of(delta))

    def told(self, reply: Reply) -> None:
        if reply.usage != Usage():
            self._cost.usage = usage(reply.usage)


def text_of(delta: Delta) -> str:
    """All that was generated for it."""
    if not delta.tool_calls:
        return delta.content + delta.reasoning
    functions = [call.get("function") or {} for call in delta.tool_calls]
    calls = [function.get(name) or "" for function in functions for name in ("name", "arguments")]
    return "".join([delta.content, delta.reasoning, *calls])


def usage_wanted(body: Mapping[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))
