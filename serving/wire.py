"""What goes over the wire: errors in the caller's dialect, streams as server-sent events, replies as OpenAI's JSON.

A dialect is what differs between the families of routes: the shape of an error, as an answer and inside a stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from penstock.chat import Delta, Reply, Usage
from penstock.errors import PenstockError
from serving.exchange import Headers

JSON: Headers = [(b"content-type", b"application/json")]
# Without the last two a proxy on the way may hold the stream back until it is complete.
EVENT_STREAM: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
DONE_EVENT = b"data: [DONE]\n\n"


class Dialect(Protocol):
    def headers(self, request_id: str) -> Headers:
        """Those that every answer of this family bears."""

    def error(self, error: PenstockError, request_id: str) -> dict[str, Any]:
        """The body of an error answer."""

    def error_event(self, error: PenstockError, request_id: str) -> bytes:
        """The same as the last event of a stream that cannot go on."""


class OpenAI:
    """Chat and plain completions: unnamed events."""

    def headers(self, request_id: str) -> Headers:
        return []

    def error(self, error: PenstockError, request_id: str) -> dict[str, Any]:
        return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}

    def error_event(self, error: PenstockError, request_id: str) -> bytes:
        return b"data: " + orjson.dumps(self.error(error, request_id)) + b"\n\n"


class Responses(OpenAI):
    """/v1/responses: named events."""

    def error_event(self, error: PenstockError, request_id: str) -> bytes:
        document = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        return b"event: error\ndata: " + orjson.dumps(document) + b"\n\n"


class Anthropic:
    """/v1/messages: named events, Anthropic's error types, a `request-id` header."""

    TYPES: Mapping[int, str] = {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        422: "invalid_request_error",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }

    def headers(self, request_id: str) -> Headers:
        return [(b"request-id", request_id.encode())]

    def error(self, error: PenstockError, request_id: str) -> dict[str, Any]:
        kind = self.TYPES.get(error.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}

    def error_event(self, error: PenstockError, request_id: str) -> bytes:
        return b"event: error\ndata: " + orjson.dumps(self.error(error, request_id)) + b"\n\n"


OPENAI: Dialect = OpenAI()
RESPONSES: Dialect = Responses()
ANTHROPIC: Dialect = Anthropic()


@dataclass(frozen=True, slots=True)
class ChatShape:
    """A `Chat`'s answer in the shape of /v1/chat/completions."""

    id: str
    model: str
    created: int

    def whole(self, reply: Reply) -> dict[str, Any]:
        message = {"content": None, "refusal": None, **reply.message.model_dump(exclude_none=True)}
        choice = {"index": 0, "message": message, "logprobs": reply.logprobs, "finish_reason": reply.finish_reason}
        return self._document("chat.completion", [choice]) | {"usage": usage(reply.usage)}

    def first(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""}, None)

    def piece(self, delta: Delta) -> dict[str, Any]:
        content: dict[str, Any] = {"content": delta.content} if delta.content else {}
        content |= {"reasoning": delta.reasoning} if delta.reasoning else {}
        content |= {"tool_calls": list(delta.tool_calls)} if delta.tool_calls else {}
        return self._chunk(content, None, delta.logprobs)

    def last(self, reply: Reply) -> dict[str, Any]:
        return self._chunk({}, reply.finish_reason)

    def usage_chunk(self, reply: Reply) -> dict[str, Any]:
        return self._document("chat.completion.chunk", []) | {"usage": usage(reply.usage)}

    def _chunk(self, delta: Mapping[str, Any], finish: str | None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._document("chat.completion.chunk", [choice])

    def _document(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


@dataclass(frozen=True, slots=True)
class TextShape:
    """The same in the shape of /v1/completions."""

    id: str
    model: str
    created: int

    def whole(self, reply: Reply) -> dict[str, Any]:
        return self._document([self._choice(reply.message.text, reply.finish_reason)]) | {"usage": usage(reply.usage)}

    def first(self) -> None:
        return None

    def piece(self, delta: Delta) -> dict[str, Any]:
        return self._document([self._choice(delta.content, None)])

    def last(self, reply: Reply) -> dict[str, Any]:
        return self._document([self._choice("", reply.finish_reason)])

    def usage_chunk(self, reply: Reply) -> dict[str, Any]:
        return self._document([]) | {"usage": usage(reply.usage)}

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}

    def _document(self, choices: list[Any]) -> dict[str, Any]:
        kind = "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def usage(used: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.total_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
    }


def data_event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"
