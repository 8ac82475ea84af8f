"""A `Chat`'s answer in the shape of /v1/messages: Anthropic's Message, or the events that lead to it."""

from typing import Any

import orjson

from penstock.chat import Delta, Reply, Usage
from penstock.errors import PenstockError
from serving.blocks import Block, Blocks, blocks_of
from serving.responses_shape import named_event
from serving.wire import breakdown

DELTAS = {
    "reasoning": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "refusal": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}
STOPS = {"length": "max_tokens", "content_filter": "refusal", "tool_calls": "tool_use", "function_call": "tool_use"}
PING = named_event({"type": "ping"})


class MessagesShape(Blocks):
    """`shows_thinking`: whether the caller has asked for the reasoning, which is no part of an answer otherwise."""

    def __init__(self, request_id: str, model: str, *, shows_thinking: bool = False) -> None:
        super().__init__()
        self.id = f"msg_{request_id}"
        self.model = model
        self.shows_thinking = shows_thinking

    def whole(self, reply: Reply) -> dict[str, Any]:
        blocks = [block for block in blocks_of(reply.message) if self.shows(block.kind)]
        content = [self._content(block, whole=True) for block in blocks] or [{"type": "text", "text": ""}]
        return self._message(content) | self._stop(reply, blocks) | {"usage": usage(reply.usage)}

    def first(self) -> bytes:
        """What the prompt takes is told at the end: nobody has counted it yet, and an estimate would be taken for it.
        Until then it is none, which clients that add up what they are told do not count twice."""
        message = self._message([]) | {"stop_reason": None, "stop_sequence": None, "usage": usage(Usage())}
        return named_event({"type": "message_start", "message": message})

    def piece(self, delta: Delta) -> bytes:
        if delta.reasoning and not self.shows_thinking:
            delta = Delta(delta.content, "", delta.tool_calls)
        return self.take(delta)

    def last(self, reply: Reply) -> bytes:
        rest = self.rest(reply)
        delta = {"type": "message_delta", "delta": self._stop(reply, self.told), "usage": usage(reply.usage)}
        return b"".join([rest, named_event(delta), named_event({"type": "message_stop"})])

    def failed(self, error: PenstockError) -> bytes:
        return b""

    def alive(self) -> bytes:
        return PING

    def shows(self, kind: str) -> bool:
        return kind != "reasoning" or self.shows_thinking

    def begun(self, block: Block) -> bytes:
        content = self._content(block, whole=False)
        return named_event({"type": "content_block_start", "index": block.number, "content_block": content})

    def gone_on(self, block: Block, piece: str, logprobs: list[Any]) -> bytes:
        kind, name = DELTAS[block.kind]
        delta = {"type": kind, name: piece}
        return named_event({"type": "content_block_delta", "index": block.number, "delta": delta})

    def ended(self, block: Block) -> bytes:
        return named_event({"type": "content_block_stop", "index": block.number})

    def _content(self, block: Block, *, whole: bool) -> dict[str, Any]:
        text = block.text if whole else ""
        if block.kind == "call":
            call_id = block.call_id or f"toolu_{self.id}_{block.number}"
            return {"type": "tool_use", "id": call_id, "name": block.name, "input": arguments(text)}
        if block.kind == "reasoning":
            return {"type": "thinking", "thinking": text, "signature": ""}  # there is nobody to sign it
        return {"type": "text", "text": text}

    def _message(self, content: list[Any]) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content}

    def _stop(self, reply: Reply, blocks: list[Block]) -> dict[str, Any]:
        """A forced call of a tool ends with `stop` in chats. One that was cut by a stop string or a limit is none."""
        reason = STOPS.get(reply.finish_reason)
        if reason is None and reply.stopped_by is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": reply.stopped_by}
        if reason is None and any(block.kind == "call" for block in blocks):
            reason = "tool_use"
        return {"stop_reason": reason or "end_turn", "stop_sequence": None}


def arguments(text: str) -> Any:
    """What a model has written for a call: an object, if it has kept to the format; empty for one that was cut."""
    try:
        said = orjson.loads(text) if text else {}
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def usage(used: Usage) -> dict[str, Any]:
    """Anthropic counts what the cache has had beside the other tokens of the prompt; `penstock` as in chats."""
    said = {
        "input_tokens": used.prompt_tokens - used.cached_tokens,
        "output_tokens": used.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": used.cached_tokens,
    }
    return said | {"penstock": breakdown(used)} if used.calls else said
