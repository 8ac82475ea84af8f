"""A `Chat`'s answer in the shape of /v1/responses: OpenAI's Response, or the events that lead to it."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from penstock.chat import Choice, Delta, Reply, Usage
from penstock.errors import PenstockError, RateLimited
from serving.blocks import Block, Blocks, blocks_of
from serving.wire import KEEP_ALIVE, breakdown

IDS = {"reasoning": "rs", "text": "msg", "refusal": "msg", "call": "fc"}
DELTAS = {
    "reasoning": "response.reasoning_text.delta",
    "text": "response.output_text.delta",
    "refusal": "response.refusal.delta",
}
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesShape(Blocks):
    """`echo`: what the response repeats of the request."""

    def __init__(self, request_id: str, model: str, echo: Mapping[str, Any]) -> None:
        super().__init__()
        self.request_id = request_id
        self.model = model
        self.echo = echo
        self.created = int(time.time())
        self._sequence = -1
        self._last_status = "completed"

    def whole(self, reply: Reply) -> dict[str, Any]:
        return self._finished(blocks_of(reply.message, reply.logprobs), reply)

    def first(self) -> bytes:
        waiting = self._response("in_progress")
        return b"".join(self._event(f"response.{kind}", response=waiting) for kind in ("created", "in_progress"))

    def piece(self, delta: Delta) -> bytes:
        return self.take(delta)

    def last(self, reply: Reply) -> bytes:
        self._last_status = status_of(reply.choices[0])
        rest = self.rest(reply)
        response = self._finished(self.told, reply)
        return rest + self._event(f"response.{response['status']}", response=response)

    def failed(self, error: PenstockError) -> bytes:
        code = "rate_limit_exceeded" if isinstance(error, RateLimited) else "server_error"
        response = self._response("failed") | {"error": {"code": code, "message": error.message}}
        event = self._event("response.failed", response=response)
        error.event_number = self._sequence + 1
        self._sequence -= 1  # there may be others who read the same stream
        return event

    def alive(self) -> bytes:
        return KEEP_ALIVE

    def begun(self, block: Block) -> bytes:
        added = self._event("response.output_item.added", output_index=block.number, item=self._item(block, "begun"))
        if block.kind == "call":
            return added
        return added + self._event("response.content_part.added", **self._place(block), part=part_of(block.kind, ""))

    def gone_on(self, block: Block, piece: str, logprobs: list[Any]) -> bytes:
        if block.kind == "call":
            place = {"item_id": self._id(block), "output_index": block.number}
            return self._event("response.function_call_arguments.delta", **place, delta=piece)
        more = {"logprobs": logprobs} if block.kind == "text" else {}
        return self._event(DELTAS[block.kind], **self._place(block), delta=piece, **more)

    def ended(self, block: Block) -> bytes:
        return b"".join([*self._ends(block), self._event("response.output_item.done", **self._done(block))])

    def _ends(self, block: Block) -> Iterable[bytes]:
        text = block.text
        if block.kind == "call":
            said = {"item_id": self._id(block), "name": block.name, "output_index": block.number, "arguments": text}
            yield self._event("response.function_call_arguments.done", **said)
            return
        place = self._place(block)
        kind = DELTAS[block.kind].replace(".delta", ".done")
        whole = {"refusal": text} if block.kind == "refusal" else {"text": text}
        more = {"logprobs": block.logprobs} if block.kind == "text" else {}
        yield self._event(kind, **place, **whole, **more)
        yield self._event("response.content_part.done", **place, part=part_of(block.kind, text, block.logprobs))

    def _done(self, block: Block) -> dict[str, Any]:
        return {"output_index": block.number, "item": self._item(block, self._status(block, self.told))}

    def _finished(self, blocks: Iterable[Block], reply: Reply) -> dict[str, Any]:
        status = self._last_status = status_of(reply.choices[0])
        told = list(blocks)
        response = self._response(status, [self._item(block, self._status(block, told)) for block in told])
        reason = INCOMPLETE.get(reply.finish_reason)
        details = {"reason": reason} if reason else None
        return response | {
            "incomplete_details": details,
            "completed_at": int(time.time()) if reason is None else None,
            "usage": usage(reply.usage),
        }

    def _status(self, block: Block, told: list[Block]) -> str:
        """The last one is cut where the answer is."""
        return self._last_status if block is told[-1] else "completed"

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        begun = status == "begun"
        item = {"id": self._id(block), "status": "in_progress" if begun else status}
        if block.kind == "call":
            call_id = block.call_id or f"call_{self._id(block)}"
            arguments = "" if begun else block.text
            return item | {"type": "function_call", "call_id": call_id, "name": block.name, "arguments": arguments}
        content = [] if begun else [part_of(block.kind, block.text, block.logprobs)]
        if block.kind == "reasoning":
            return item | {"type": "reasoning", "summary": [], "content": content}
        return item | {"type": "message", "role": "assistant", "content": content}

    def _id(self, block: Block) -> str:
        return f"{IDS[block.kind]}_{self.request_id}_{block.number}"

    def _place(self, block: Block) -> dict[str, Any]:
        return {"item_id": self._id(block), "output_index": block.number, "content_index": 0}

    def _response(self, status: str, output: Iterable[Any] = ()) -> dict[str, Any]:
        return {
            "id": f"resp_{self.request_id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": list(output),
            **self.echo,
            "background": False,
            "previous_response_id": None,
            "store": False,
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._sequence += 1
        return named_event({"type": kind, "sequence_number": self._sequence, **fields})


def named_event(document: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (document["type"].encode(), orjson.dumps(document))


def part_of(kind: str, text: str, logprobs: Iterable[Any] = ()) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def status_of(choice: Choice) -> str:
    return "incomplete" if choice.finish_reason in INCOMPLETE else "completed"


def usage(used: Usage) -> dict[str, Any]:
    """Under `penstock` what each of several calls has taken of it, as in chats."""
    said = {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
        "total_tokens": used.total_tokens,
    }
    return said | {"penstock": breakdown(used)} if used.calls else said
