"""Any OpenAI-compatible server as a `Chat`: the stream is decoded once, into deltas."""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from engine import sse
from engine.affinity import hint_of
from engine.asked import Asked, Limits, Source
from engine.dispatch import Dispatch
from engine.pool import Pool
from engine.reading import CHAT, TEXT
from penstock.chat import ChatRequest, Choice, Delta, Emit, FinishReason, Message, Reply, Usage
from penstock.errors import EngineError, StreamInterrupted

PAUSE_AT = 64
RESUME_AT = 8
STOPS = ("stop_reason", "matched_stop")
"""Where engines tell what has ended an answer, vLLM and SGLang; null where nothing of the caller's has."""


class OpenAIChat:
    """Answers through whichever replica of the pool is free, with as many choices as the request's `n` asks for.

    `name`: every replica knows the model by it; `headers`: whole lines that go with each call; `deadline`: when nobody
    wants the answer any more, by the loop's clock; `session`: the caller's own key for where its requests go.

    Raises what the engine says as a PenstockError, StreamInterrupted when its stream ends too soon and nobody can go
    on with it, EngineTimeout when it is silent for longer than the limits allow.
    """

    def __init__(
        self,
        pool: Pool,
        limits: Limits | None = None,
        *,
        name: str | None = None,
        headers: bytes = b"",
        deadline: float = math.inf,
        session: bytes | None = None,
    ) -> None:
        self.pool = pool
        self.limits = limits or Limits()
        self._name = name
        self._headers = headers
        self._deadline = deadline
        self._session = session

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply:
        asked = self._asked(request)
        taken = Taken()
        dispatch = Dispatch(self.pool, asked, taken, self.limits, request.model)
        running = asyncio.ensure_future(dispatch.run())
        running.add_done_callback(lambda _: taken.close())
        answer = Answer()
        try:
            while (data := await taken.next()) is not None:
                for chunk in chunks(data):
                    for delta in answer.add(chunk):
                        await emit(delta)
            if await running is not None:
                raise EngineError("the engine answered a stream with a whole answer")
        finally:
            running.cancel()
            await asyncio.wait([running])
        return answer.reply()

    def _asked(self, request: ChatRequest) -> Asked:
        body = request.to_wire() | {"stream": True, "stream_options": {"include_usage": True}}
        if request.is_plain:
            body["prompt"] = body.pop("messages")[0]["content"]
        hint = hint_of(body, self._session)
        path = TEXT if request.is_plain else CHAT
        return Asked(path, body, self._headers, hint, self._deadline, name=self._name)


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
    """The whole answer, put together from chunks."""

    def __init__(self) -> None:
        self.choices: dict[int, Heard] = {}
        self.usage = Usage()

    def add(self, chunk: Mapping[str, Any]) -> list[Delta]:
        """Takes a chunk in; returns what of it is worth streaming."""
        if chunk.get("usage"):
            self.usage = usage_of(chunk["usage"])
        pieces = []
        for choice in chunk.get("choices") or ():
            index = choice.get("index") or 0
            heard = self.choices.get(index)
            if heard is None:
                heard = self.choices[index] = Heard()
            piece = heard.add(choice, index)
            if piece.content or piece.reasoning or piece.tool_calls or piece.logprobs:
                pieces.append(piece)
        return pieces

    def reply(self) -> Reply:
        """Raises StreamInterrupted where a choice has no finish reason: it is not whole."""
        if not self.choices:
            raise StreamInterrupted("the engine's stream ended without an answer")
        return Reply.of([self.choices[index].choice() for index in sorted(self.choices)], self.usage)


class Heard:
    """What has come of one choice."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.tool_calls: dict[int, dict[str, Any]] = {}
        self.logprobs: dict[str, Any] | None = None
        self.finish_reason: FinishReason | None = None
        self.stopped_by: str | None = None
        self.stop_untold = False

    def add(self, choice: Mapping[str, Any], index: int) -> Delta:
        """A chat's piece, or in `text` one of a plain completion."""
        delta = choice.get("delta") or {}
        if choice.get("finish_reason"):
            self.finish_reason = choice["finish_reason"]
            told = [choice[name] for name in STOPS if name in choice]
            self.stopped_by = next((stop for stop in told if isinstance(stop, str)), None)  # a number is a token's
            self.stop_untold = not told
        logprobs = choice.get("logprobs")
        if logprobs:
            self.logprobs = logprobs if self.logprobs is None else joined(self.logprobs, logprobs)
        piece = Delta(
            delta.get("content") or choice.get("text") or "",
            delta.get("reasoning") or delta.get("reasoning_content") or "",
            delta.get("tool_calls") or (),
            logprobs,
            index,
        )
        if piece.content:
            self.content.append(piece.content)
        if piece.reasoning:
            self.reasoning.append(piece.reasoning)
        for call in piece.tool_calls:
            self._add_call(call)
        return piece

    def _add_call(self, call: dict[str, Any]) -> None:
        whole = self.tool_calls.setdefault(
            call.get("index", 0), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        whole["id"] = call.get("id") or whole["id"]
        function = call.get("function") or {}
        whole["function"]["name"] += function.get("name") or ""
        whole["function"]["arguments"] += function.get("arguments") or ""

    def choice(self) -> Choice:
        """Raises StreamInterrupted if no finish reason came."""
        if self.finish_reason is None:
            raise StreamInterrupted("the engine's stream ended without a finish reason")
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.content) or None}
        if self.reasoning:
            message["reasoning"] = "".join(self.reasoning)
        if self.tool_calls:
            message["tool_calls"] = [self.tool_calls[index] for index in sorted(self.tool_calls)]
        return Choice(Message(**message), self.finish_reason, self.logprobs, self.stopped_by, self.stop_untold)


def joined(before: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Log-probabilities of two pieces: each of their lists goes on."""
    result = dict(before)
    for name, values in more.items():
        result[name] = [*(result.get(name) or ()), *values] if isinstance(values, list) else values
    return result


def usage_of(usage: dict[str, Any]) -> Usage:
    of_prompt = usage.get("prompt_tokens_details") or {}
    of_answer = usage.get("completion_tokens_details") or {}
    return Usage(
        usage.get("prompt_tokens") or 0,
        usage.get("completion_tokens") or 0,
        of_prompt.get("cached_tokens") or 0,
        reasoning_tokens=of_answer.get("reasoning_tokens") or 0,
    )
