"""What the strategies share: calls beside the answer, several choices, what a request must not have."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from penstock.chat import Chat, ChatRequest, Delta, Emit, Message, Reply, Usage, silent
from penstock.errors import BadRequest

CONSTRAINTS = ("response_format", "structured_outputs", "tools", "tool_choice", "parallel_tool_calls")
"""Fields that bind the visible answer, and not what is written on the way to it."""
OF_THE_ANSWER = ("n", "stream_options", "logprobs", "top_logprobs", "stop", "max_tokens", "max_completion_tokens")
"""Fields about the visible answer alone."""

Once = Callable[[ChatRequest, Emit], Awaitable[Reply]]


async def each_choice(request: ChatRequest, emit: Emit, once: Once) -> Reply:
    """As many answers as `n` asks for, side by side, each by a call of `once` with a request for one."""
    count = getattr(request, "n", None) or 1
    single = request.but(n=None) if count > 1 else request
    if count == 1:
        return await once(single, emit)

    def into(index: int) -> Emit:
        async def emit_there(delta: Delta) -> None:
            await emit(Delta(delta.content, delta.reasoning, delta.tool_calls, delta.logprobs, index))

        return emit_there

    tasks = [asyncio.ensure_future(once(single, into(index))) for index in range(count)]
    try:
        replies = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return Reply.of([reply.choices[0] for reply in replies], sum((reply.usage for reply in replies), Usage()))


def as_reasoning(emit: Emit) -> Emit:
    """What is answered there is thought here: it streams as reasoning."""

    async def think(delta: Delta) -> None:
        if delta.content or delta.reasoning:
            await emit(Delta(reasoning=delta.reasoning + delta.content, choice=delta.choice))

    return think


def aside(request: ChatRequest, turns: Sequence[Message], **fields: Any) -> ChatRequest:
    """A call on the way to the answer: the request's own turns first, byte for byte, so that the engine's prefix cache
    has them, then `turns`. It is free in what it writes: nothing binds it that is meant for the visible answer."""
    free: dict[str, Any] = dict.fromkeys((*CONSTRAINTS, *OF_THE_ANSWER))
    return request.with_messages([*request.messages, *turns]).but(**{**free, **fields})


async def ask(chat: Chat, request: ChatRequest, step: str, emit: Emit | None = None) -> Reply:
    """A call whose usage is told as that of `step`; what it says streams as reasoning where `emit` is given."""
    reply = await chat(request, as_reasoning(emit) if emit else silent)
    return Reply.of(reply.choices, reply.usage.of(step))


def chats_only(request: ChatRequest, step: str) -> None:
    """Raises BadRequest for a prompt that is to be gone on with as it stands: there are no turns to work with."""
    if request.is_plain:
        raise BadRequest(
            f"this model has the step {step}, which needs a conversation: POST /v1/chat/completions", param="prompt"
        )


def without_tools(request: ChatRequest, step: str) -> None:
    """Raises BadRequest for a request with tools, for a step that could only drop them."""
    if getattr(request, "tools", None):
        raise BadRequest(f"this model has the step {step}, which cannot answer with calls of tools", param="tools")
