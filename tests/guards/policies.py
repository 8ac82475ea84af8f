"""Policies over engines that say what they are told, in the pieces that they are told."""

import asyncio
from collections.abc import Sequence
from typing import Any

from guards.guard import Guard
from guards.policy import Policy
from penstock.chat import Chat, ChatRequest, Choice, Delta, Emit, FinishReason, Message, Reply, Usage, silent
from tests.prompting.conftest import Bench


class Saying:
    """Says these deltas, then replies with what they make together; `calls` are of tools, by choice."""

    def __init__(
        self, deltas: Sequence[Delta], calls: Sequence[dict[str, Any]] = (), finish: FinishReason = "stop", **ended: Any
    ) -> None:
        self.deltas = deltas
        self.calls = calls
        self.finish: FinishReason = finish
        self.ended = ended
        self.asked: list[ChatRequest] = []
        self.said = 0

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply:
        self.asked.append(request)
        for delta in self.deltas:
            await emit(delta)
            self.said += 1
            await asyncio.sleep(0)
        if self.calls:
            await emit(Delta(tool_calls=[{"index": 0, **self.calls[0]}]))
        count = 1 + max((delta.choice for delta in self.deltas), default=0)
        return Reply.of([self._choice(index) for index in range(count)], Usage(3, len(self.deltas)))

    def _choice(self, index: int) -> Choice:
        content, reasoning = (
            "".join(getattr(delta, name) for delta in self.deltas if delta.choice == index)
            for name in ("content", "reasoning")
        )
        message: dict[str, Any] = {"role": "assistant", "content": content or None}
        message |= {"reasoning": reasoning} if reasoning else {}
        if self.calls:
            called = Message(**message, tool_calls=list(self.calls))
            return Choice(called, "tool_calls" if self.finish == "stop" else self.finish, **self.ended)
        return Choice(Message(**message), self.finish, **self.ended)


class Unheard(Saying):
    """Its reply is all that it says."""

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply:
        return await super().__call__(request, silent)


def behind(bench: Bench, chat: Chat, *guards: Guard, name: str = "strict", **options: Any) -> Chat:
    named = tuple((type(guard).__name__.lower(), guard) for guard in guards)
    return Policy(name=name, guards=named, **options).around(bench)(chat)


def tool_call(arguments: str, name: str = "send") -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
