"""Any OpenAI-compatible server as a `Chat`: the stream is decoded once, into deltas."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx2
import orjson

from engine import sse
from engine.failures import from_answer, from_document
from engine.pool import Pool
from penstock.chat import ChatRequest, Delta, Emit, FinishReason, Message, Reply, Usage
from penstock.config import Gateway
from penstock.errors import BadRequest, EngineError, EngineTimeout, EngineUnavailable, StreamInterrupted

PATH = "/v1/chat/completions"


class OpenAIChat:
    """Answers through whichever replica of the pool is free. One answer a request: n > 1 is a BadRequest.

    Raises what the engine says as a PenstockError, StreamInterrupted when its stream ends too soon, EngineTimeout when
    it is silent for longer than the gateway's limits allow.
    """

    def __init__(self, pool: Pool, limits: Gateway | None = None) -> None:
        self.pool = pool
        self.limits = limits or Gateway()

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply:
        body = request.to_wire() | {"stream": True, "stream_options": {"include_usage": True}}
        if (body.get("n") or 1) != 1:
            raise BadRequest("one answer at a time: n must be 1", param="n")
        async with self.pool.lease() as replica:
            if replica.model:
                body["model"] = replica.model
            try:
                return await self._answer(replica.client, body, emit)
            except EngineError:
                replica.suspect()
                raise

    async def _answer(self, client: httpx2.AsyncClient, body: dict[str, Any], emit: Emit) -> Reply:
        answer = Answer()
        wait_s = self.limits.first_byte_timeout_s
        async with aclosing(chunks(client, body)) as stream:
            while True:
                try:
                    async with asyncio.timeout(wait_s):
                        chunk = await anext(stream)
                except StopAsyncIteration:
                    return answer.reply()
                except TimeoutError as error:
                    raise EngineTimeout(f"the engine was silent for {wait_s:g} s") from error
                wait_s = self.limits.stall_timeout_s
                delta = answer.add(chunk)
                if delta:
                    await emit(delta)


async def chunks(client: httpx2.AsyncClient, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """The stream's chunks up to its [DONE]."""
    splitter = sse.EventSplitter()
    try:
        async with client.stream("POST", PATH, json=body) as response:
            if response.status_code != 200:
                raise from_answer(response.status_code, await response.aread(), response.headers.get("retry-after"))
            async for piece in response.aiter_raw():
                for event in splitter.feed(piece):
                    data = sse.parse(event).data
                    if data == sse.DONE:
                        return
                    if data:
                        yield chunk_of(data)
    except httpx2.ConnectError as error:
        raise EngineUnavailable("the engine does not accept connections", retry_after_s=5) from error
    except httpx2.HTTPError as error:
        raise StreamInterrupted("the engine's stream broke off") from error
    raise StreamInterrupted("the engine's stream ended before the answer did")


def chunk_of(data: bytes) -> dict[str, Any]:
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise EngineError("the engine sent an event that is not JSON") from error
    if not isinstance(chunk, dict):
        raise EngineError("the engine sent an event that is no chunk")
    if chunk.get("error"):
        raise from_document(500, chunk)
    return chunk


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
