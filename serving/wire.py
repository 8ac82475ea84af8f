"""What goes over the wire: errors in the caller's dialect, streams as server-sent events, replies as OpenAI's JSON.

A dialect is what differs between the families of routes: the shape of an error, as an answer and inside a stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from penstock.chat import Delta, Message, Reply, Usage
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
KEEP_ALIVE = b": there is more to come\n\n"


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
        document: dict[str, Any] = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        if error.event_number is not None:
            document["sequence_number"] = error.event_number
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
    with_usage: bool = False
    """Whether a stream ends with what it has cost."""
    choices: int = 1

    def whole(self, reply: Reply) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"content": None, "refusal": None, **message_of(choice.message)},
                "logprobs": choice.logprobs,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(reply.choices)
        ]
        return self._document("chat.completion", choices) | {"usage": usage(reply.usage)}

    def first(self) -> bytes:
        begun = {"role": "assistant", "content": ""}
        return b"".join([self._chunk(begun, None, None, index) for index in range(self.choices)])

    def piece(self, delta: Delta) -> bytes:
        content: dict[str, Any] = {"content": delta.content} if delta.content else {}
        if delta.reasoning:
            content |= {"reasoning": delta.reasoning, "reasoning_content": delta.reasoning}
        if delta.tool_calls:
            content |= {"tool_calls": list(delta.tool_calls)}
        return self._chunk(content, None, delta.logprobs, delta.choice)

    def last(self, reply: Reply) -> bytes:
        ends = [self._chunk({}, choice.finish_reason, None, index) for index, choice in enumerate(reply.choices)]
        if self.with_usage:
            ends.append(data_event(self._document("chat.completion.chunk", []) | {"usage": usage(reply.usage)}))
        return b"".join([*ends, DONE_EVENT])

    def failed(self, error: PenstockError) -> bytes:
        return b""

    def alive(self) -> bytes:
        return KEEP_ALIVE

    def _chunk(self, delta: Mapping[str, Any], finish: str | None, logprobs: Any = None, index: int = 0) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return data_event(self._document("chat.completion.chunk", [choice]))

    def _document(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def message_of(message: Message) -> dict[str, Any]:
    """As it goes out: reasoning under both names that clients look for."""
    said = message.model_dump(exclude_none=True)
    return {**said, "reasoning_content": said["reasoning"]} if "reasoning" in said else said


@dataclass(frozen=True, slots=True)
class TextShape:
    """The same in the shape of /v1/completions."""

    id: str
    model: str
    created: int
    with_usage: bool = False

    def whole(self, reply: Reply) -> dict[str, Any]:
        choices = [
            self._choice(choice.message.text, choice.finish_reason, choice.logprobs, index)
            for index, choice in enumerate(reply.choices)
        ]
        return self._document(choices) | {"usage": usage(reply.usage)}

    def first(self) -> bytes:
        return b""

    def piece(self, delta: Delta) -> bytes:
        return data_event(self._document([self._choice(delta.content, None, delta.logprobs, delta.choice)]))

    def last(self, reply: Reply) -> bytes:
        ends = [self._choice("", choice.finish_reason, None, index) for index, choice in enumerate(reply.choices)]
        events = [data_event(self._document([end])) for end in ends]
        if self.with_usage:
            events.append(data_event(self._document([]) | {"usage": usage(reply.usage)}))
        return b"".join([*events, DONE_EVENT])

    def failed(self, error: PenstockError) -> bytes:
        return b""

    def alive(self) -> bytes:
        return KEEP_ALIVE

    def _choice(self, text: str, finish: str | None, logprobs: Any, index: int) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _document(self, choices: list[Any]) -> dict[str, Any]:
        kind = "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def usage(used: Usage) -> dict[str, Any]:
    """OpenAI's, and under `penstock` what each of several calls has taken of it."""
    said = counts(used) | {"prompt_tokens_details": {"cached_tokens": used.cached_tokens}}
    if used.reasoning_tokens:
        said["completion_tokens_details"] = {"reasoning_tokens": used.reasoning_tokens}
    return said | {"penstock": breakdown(used)} if used.calls else said


def breakdown(used: Usage) -> dict[str, Any]:
    """Calls of one step are told together."""
    by_step: dict[str, Usage] = {}
    rest = used
    calls: dict[str, int] = {}
    for step, usage in used.calls:
        by_step[step] = by_step.get(step, Usage()) + usage
        calls[step] = calls.get(step, 0) + 1
        rest = rest.less(usage)
    told = {step: {"calls": calls[step], **counts(usage)} for step, usage in by_step.items()}
    return {"steps": told | ({"answer": counts(rest)} if rest != Usage() else {})}


def counts(used: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.total_tokens,
    }


def data_event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"
