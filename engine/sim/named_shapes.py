"""The same of the routes with named events: OpenAI's Responses and Anthropic's Messages."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from engine.sim.asked import Asked
from engine.sim.moves import Event
from engine.sim.shapes import Ended, Used, data, identity


class Responses:
    """/v1/responses. vLLM calls every end `response.completed`; one that was cut short has status `incomplete`."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.id, self.message_id = identity("resp_"), identity("msg_")
        self.created = int(time.time())
        self.sequence = -1

    def event(self, kind: str, **fields: Any) -> bytes:
        self.sequence += 1
        return named_event({**fields, "sequence_number": self.sequence, "type": kind})

    def opening(self, used: Used) -> Iterable[Event]:
        for kind in ("response.created", "response.in_progress"):
            yield Event("extra", self.event(kind, response=self.response("in_progress")))
        item = self.message("in_progress")
        yield Event("role", self.event("response.output_item.added", item=item, output_index=0))
        place, part = self.place(), self.part("", [])
        yield Event("extra", self.event("response.content_part.added", **place, part=part))

    def piece(self, index: int, text: bytes) -> bytes:
        self.sequence += 1
        return (
            b'event: response.output_text.delta\ndata: {"content_index":0,"delta":%b,"item_id":"%b","logprobs":[],'
            b'"output_index":0,"sequence_number":%d,"type":"response.output_text.delta"}\n\n'
            % (text, self.message_id.encode(), self.sequence)
        )

    def finish(self, ended: Ended, text: bytes) -> Iterable[Event]:
        if text != b'""':
            yield Event("token", self.piece(0, text))
        place, part = self.place(), self.part(ended.text, None)
        yield Event("finish", self.event("response.output_text.done", **place, logprobs=[], text=ended.text))
        yield Event("extra", self.event("response.content_part.done", **place, part=part))
        item = self.message("completed", part)
        yield Event("extra", self.event("response.output_item.done", item=item, output_index=0))

    def ending(self, ended: Sequence[Ended], used: Used) -> Iterable[Event]:
        yield Event("last", self.event("response.completed", response=self.complete(ended[0], used)))

    def whole(self, ended: Sequence[Ended], used: Used) -> bytes:
        return orjson.dumps(self.complete(ended[0], used))

    def complete(self, ended: Ended, used: Used) -> dict[str, Any]:
        cut = ended.reason == "length"
        usage = {
            "input_tokens": used.prompt_tokens,
            "input_tokens_details": {"cached_tokens": used.cached_tokens},
            "output_tokens": used.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used.prompt_tokens + used.completion_tokens,
        }
        output = [self.message("completed", self.part(ended.text, None))]
        reason = {"reason": "max_output_tokens"} if cut else None
        return self.response("incomplete" if cut else "completed", output, reason, usage)

    def response(self, status: str, output: Any = (), reason: Any = None, usage: Any = None) -> dict[str, Any]:
        return {
            "id": self.id,
            "created_at": self.created,
            "incomplete_details": reason,
            "instructions": None,
            "metadata": None,
            "model": self.asked.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0,
            "background": False,
            "max_output_tokens": self.asked.max_tokens,
            "service_tier": "auto",
            "status": status,
            "truncation": "disabled",
            "usage": usage,
        }

    def message(self, status: str, *content: Any) -> dict[str, Any]:
        return {"id": self.message_id, "content": content, "role": "assistant", "status": status, "type": "message"}

    def place(self) -> dict[str, Any]:
        return {"content_index": 0, "item_id": self.message_id, "output_index": 0}

    def part(self, text: str, logprobs: Any) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}

    def error(self, document: Mapping[str, Any]) -> list[Event]:
        return [Event("extra", data(document))]


class Messages:
    """/v1/messages."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.id = identity("chatcmpl-")

    def opening(self, used: Used) -> Iterable[Event]:
        usage = {"input_tokens": used.prompt_tokens, "output_tokens": 0}
        yield Event("role", named_event({"type": "message_start", "message": self.message([], None, None, usage)}))
        block = {"type": "text", "text": ""}
        yield Event("extra", named_event({"type": "content_block_start", "content_block": block, "index": 0}))

    def piece(self, index: int, text: bytes) -> bytes:
        return (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":%b},'
            b'"index":0}\n\n' % text
        )

    def finish(self, ended: Ended, text: bytes) -> Iterable[Event]:
        if text != b'""':
            yield Event("token", self.piece(0, text))
        yield Event("extra", named_event({"type": "content_block_stop", "index": 0}))

    def ending(self, ended: Sequence[Ended], used: Used) -> Iterable[Event]:
        delta = {"stop_reason": self.why(ended[0]), "stop_sequence": ended[0].stop}
        yield Event("finish", named_event({"type": "message_delta", "delta": delta, "usage": self.usage(used)}))
        yield Event("last", named_event({"type": "message_stop"}))

    def whole(self, ended: Sequence[Ended], used: Used) -> bytes:
        text = [{"type": "text", "text": ended[0].text}]
        message = self.message(text, self.why(ended[0]), ended[0].stop, self.usage(used))
        return orjson.dumps({name: value for name, value in message.items() if value is not None})

    def message(self, content: Any, why: str | None, stop: str | None, usage: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.asked.model,
            "stop_reason": why,
            "stop_sequence": stop,
            "usage": usage,
        }

    def why(self, ended: Ended) -> str:
        if ended.reason == "length":
            return "max_tokens"
        return "stop_sequence" if ended.stop else "end_turn"

    def usage(self, used: Used) -> dict[str, Any]:
        return {
            "input_tokens": used.prompt_tokens - used.cached_tokens,
            "output_tokens": used.completion_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": used.cached_tokens,
        }

    def error(self, document: Mapping[str, Any]) -> list[Event]:
        error = {"type": "internal_error", "message": document["error"]["message"]}
        return [Event("extra", named_event({"type": "error", "error": error}))]


def named_event(document: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (document["type"].encode(), orjson.dumps(document))
