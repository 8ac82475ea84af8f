"""Any OpenAI-compatible server as a `Chat`: the stream is decoded once, into deltas."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from engine import sse
from engine.affinity import hint_of
from engine.asked import Asked, Limits, Source
from engine.dispatch import Dispatch
from engine.pool import Pool
from engine.reading import CHAT
from penstock.chat import ChatRequest, Delta, Emit, FinishReason, Message, Reply, Usage
from penstock.errors import BadRequest, EngineError, StreamInterrupted

PAUSE_AT = 64
RESUME_AT = 8


class OpenAIChat:
    """Answers through whichever replica of the pool is free. One answer a request: n > 1 is a BadRequest.

    Raises what the engine says as a PenstockError, StreamInterrupted when its stream ends too soon and nobody can go
    on with it, EngineTimeout when it is silent for longer than the limits allow.
    """

    def __init__(self, pool: Pool, limits: Limits | None = None) -> None:
        self.pool = pool
        self.limits = limits or Limits()

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply:
        body = request.to_wire() | {"stream": True, "stream_options": {"include_usage": True}}
        if (body.get("n") or 1) != 1:
            raise BadRequest("one answer at a time: n must be 1", param="n")
        taken = Taken()
        dispatch = Dispatch(self.pool, Asked(CHAT, body, hint=hint_of(body)), taken, self.limits, body["model"])
        running = asyncio.ensure_future(dispatch.run())
        running.add_done_callback(lambda _: taken.close())
        answer = Answer()
        try:
            while (data := await taken.next()) is not None:
                for chunk in chunks(data):
                    delta = answer.add(chunk)
                    if delta:
                        await emit(delta)
            if await running is not None:
                raise EngineError("the engine answered a stream with a whole answer")
        finally:
            running.cancel()
            await asyncio.wait([running])
        return answer.reply()


class Taken:
    """A receiver whose stream is read at the reader's own pace; the engine waits for a slow one."""

    def __init__(self) -> None:
        self.source: Source | None = None
        self._data: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._paused: Source | None = None

    def begin(self, data: bytes) -> None:
        self.more(data)

    def more(self, data: bytes) -> None:
        self._data.put_nowait(data)
        if self.source and self._data.qsize() > PAUSE_AT:
            self._paused = self.source
            self.source.pause()

    def end(self, data: bytes) -> None:
        self.more(data)

    def used(self, usage: Mapping[str, Any] | None, texts: Sequence[Sequence[str]]) -> None:
        """The stream itself says so."""

    def close(self) -> None:
        self._data.put_nowait(None)

    async def next(self) -> bytes | None:
        """Whole events, None after the last."""
        data = await self._data.get()
        if self._paused and self._data.qsize() < RESUME_AT:
            self._paused.resume()
            self._paused = None
        return data


def chunks(data: bytes) -> Iterator[dict[str, Any]]:
    """The chunks of whole events, which have been checked."""
    for event in data.split(b"\n\n"):
        payload = sse.parse(event).data
        if payload and payload != sse.DONE:
            yield orjson.loads(payload)


class Answer:
    """The whole message, put together from chunks."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.tool_calls: dict[int, dict[str, Any]] = {}
        self.logprobs: list[Any] = []
        self.finish_reason: FinishReason | None = None
        self.usage = Usage()

    def add(self, chunk: dict[str, Any]) -> Delta | None:
        """Takes a chunk in; returns what of it is worth streaming, if anything."""
        if chunk.get("usage"):
            self.usage = usage_of(chunk["usage"])
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            logprobs = choice.get("logprobs")
            piece = Delta(
                content=delta.get("content") or "",
                reasoning=delta.get("reasoning") or delta.get("reasoning_content") or "",
                tool_calls=delta.get("tool_calls") or (),
                logprobs=logprobs,
            )
            self.content.append(piece.content)
            self.reasoning.append(piece.reasoning)
            for call in piece.tool_calls:
                self._add_call(call)
            self.logprobs += (logprobs or {}).get("content") or []
            if piece.content or piece.reasoning or piece.tool_calls:
                return piece
        return None

    def _add_call(self, call: dict[str, Any]) -> None:
        whole = self.tool_calls.setdefault(
            call.get("index", 0), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        whole["id"] = call.get("id") or whole["id"]
        function = call.get("function") or {}
        whole["function"]["name"] += function.get("name") or ""
        whole["function"]["arguments"] += function.get("arguments") or ""

    def reply(self) -> Reply:
        """Raises StreamInterrupted if no finish reason came: the answer is not whole."""
        if self.finish_reason is None:
            raise StreamInterrupted("the engine's stream ended without a finish reason")
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.content) or None}
        if any(self.reasoning):
            message["reasoning"] = "".join(self.reasoning)
        if self.tool_calls:
            message["tool_calls"] = [self.tool_calls[index] for index in sorted(self.tool_calls)]
        logprobs = {"content": self.logprobs} if self.logprobs else None
        return Reply(Message(**message), self.finish_reason, self.usage, logprobs)


def usage_of(usage: dict[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, details.get("cached_tokens") or 0
    )
