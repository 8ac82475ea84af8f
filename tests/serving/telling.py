"""A `Chat` that tells set deltas and ends as it is told, and keeps what it was asked."""

from collections.abc import Sequence
from typing import Any

from penstock.chat import ChatRequest, Choice, Delta, Emit, FinishReason, Message, Reply, Usage
from penstock.errors import PenstockError

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
THOUGHT = Delta(reasoning="Hm. ")
CALLED = (
    Delta(tool_calls=[{"index": 0, "id": "call_a", "type": "function", "function": {"name": "get", "arguments": ""}}]),
    Delta(tool_calls=[{"index": 0, "function": {"arguments": '{"city": '}}]),
    Delta(tool_calls=[{"index": 0, "function": {"arguments": '"Oslo"}'}}]),
    Delta(tool_calls=[{"index": 1, "id": "call_b", "function": {"name": "get", "arguments": '{"city": "Rome"}'}}]),
)


class Telling:
    def __init__(
        self,
        deltas: Sequence[Delta],
        finish_reason: FinishReason = "stop",
        *,
        usage: Usage = Usage(9, 5, 4, reasoning_tokens=2),
        failure: PenstockError | None = None,
        stopped_by: str | None = None,
    ) -> None:
        self.deltas = deltas
        self.finish_reason = finish_reason
        self.usage = usage
        self.failure = failure
        self.stopped_by = stopped_by
        self.asked: list[ChatRequest] = []

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply:
        self.asked.append(request)
        for delta in self.deltas:
            await emit(delta)
        if self.failure:
            raise self.failure
        return reply_of(self.deltas, self.finish_reason, self.usage, self.stopped_by)

    @property
    def wire(self) -> dict[str, Any]:
        """What was asked last."""
        return self.asked[-1].to_wire()


def reply_of(
    deltas: Sequence[Delta],
    finish_reason: FinishReason = "stop",
    usage: Usage = Usage(),
    stopped_by: str | None = None,
) -> Reply:
    message: dict[str, Any] = {"content": "".join(delta.content for delta in deltas) or None}
    if reasoning := "".join(delta.reasoning for delta in deltas):
        message["reasoning"] = reasoning
    calls: dict[int, dict[str, Any]] = {}
    for call in (call for delta in deltas for call in delta.tool_calls):
        whole = calls.setdefault(
            call["index"], {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        whole["id"] = call.get("id") or whole["id"]
        for name in ("name", "arguments"):
            whole["function"][name] += call["function"].get(name, "")
    if calls:
        message["tool_calls"] = [*calls.values()]
    return Reply.of([Choice(Message(role="assistant", **message), finish_reason, None, stopped_by)], usage)
