"""What the strategies share: calls beside the answer, several choices, what a request must not have."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from penstock.chat import Chat, ChatRequest, Delta, Emit, Message, Reply, Role, Usage, silent
from penstock.errors import BadRequest, BudgetSpent, ContextLengthExceeded

CONSTRAINTS = ("response_format", "structured_outputs", "tools", "tool_choice", "parallel_tool_calls")
"""Fields that bind the visible answer, and not what is written on the way to it."""
OF_THE_ANSWER = (
    *("n", "stream_options", "logprobs", "top_logprobs", "logprob_token_ids", "prompt_logprobs", "prediction"),
    *("stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos"),
    *("max_tokens", "max_completion_tokens", "min_tokens"),
    *("allowed_token_ids", "bad_words", "logit_bias"),
    *("continue_final_message", "add_generation_prompt", "echo"),
)
"""Fields about the visible answer alone."""
NO_ROOM = (BudgetSpent, ContextLengthExceeded)
"""Why there may be no call after a draft, which is the answer then."""

Once = Callable[[ChatRequest, Emit], Awaitable[Reply]]
T = TypeVar("T")


async def each_choice(request: ChatRequest, emit: Emit, once: Once) -> Reply:
    """As many answers as `n` asks for, side by side, each by a call of `once` with a request for one."""
    count = getattr(request, "n", None) or 1
    single = request.but(n=None) if count > 1 else request
    if count == 1:
        return await once(single, emit)

    async def of(index: int) -> Reply:
        return await once(single, into(emit, index))

    replies = await together([of(index) for index in range(count)])
    return Reply.of([reply.choices[0] for reply in replies], sum((reply.usage for reply in replies), Usage()))


def into(emit: Emit, index: int) -> Emit:
    """What streams there is of the choice with this index."""

    async def emit_there(delta: Delta) -> None:
        await emit(Delta(delta.content, delta.reasoning, delta.tool_calls, delta.logprobs, index))

    return emit_there


async def together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What they return, run side by side. The first failure ends all, as does cancellation: none is left running."""
    if not calls:
        return []
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def as_reasoning(emit: Emit) -> Emit:
    """What is answered there is thought here: it streams as reasoning."""

    async def think(delta: Delta) -> None:
        if delta.content or delta.reasoning:
            await emit(Delta(reasoning=delta.reasoning + delta.content, choice=delta.choice))

    return think


def reasoning_of(message: Message) -> str:
    return str(getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None) or "")


def aside(request: ChatRequest, turns: Sequence[Message], **fields: Any) -> ChatRequest:
    """A call on the way to the answer: the request's own turns first, byte for byte, so that the engine's prefix cache
    has them, then `turns`. It is free in what it writes: nothing binds it that is meant for the visible answer. Tools
    stay in the prompt, which begins with them, and cannot be called."""
    free: dict[str, Any] = dict.fromkeys((*CONSTRAINTS, *OF_THE_ANSWER))
    if tools := getattr(request, "tools", None):
        free |= {"tools": tools, "tool_choice": "none"}
    return request.with_messages([*request.messages, *turns]).but(**{**free, **fields})


async def ask(chat: Chat, request: ChatRequest, step: str, emit: Emit | None = None) -> Reply:
    """A call whose usage is told as that of `step`; what it says streams as reasoning where `emit` is given."""
    reply = await chat(request, as_reasoning(emit) if emit else silent)
    return Reply.of(reply.choices, reply.usage.of(step))


def to_judge(request: ChatRequest, judge: str, turns: Sequence[Message], **fields: Any) -> ChatRequest:
    """The same for another served model, whose prompts begin otherwise."""
    return aside(request, turns, **{"model": judge, "tools": None, "tool_choice": None, **fields})


def chats_only(request: ChatRequest, step: str) -> None:
    """Raises BadRequest for a prompt that is to be gone on with as it stands: there are no turns to work with."""
    if request.is_plain:
        raise BadRequest(
            f"this model has the step {step}, which needs a conversation: POST /v1/chat/completions", param="prompt"
        )


def not_begun(request: ChatRequest, step: str) -> None:
    """Raises BadRequest for a request whose last turn is to be gone on with, for a step that adds turns after it."""
    if getattr(request, "continue_final_message", None):
        raise BadRequest(
            f"this model has the step {step}, which cannot go on with a begun answer", param="continue_final_message"
        )


def is_settled(reply: Reply) -> bool:
    """Whether an answer is to be passed on as it is: it calls a tool, or has been blocked."""
    return bool(reply.message.tool_calls) or reply.finish_reason in ("tool_calls", "content_filter")


def turn(role: Role, text: str) -> Message:
    return Message(role=role, content=text)


def without_tools(request: ChatRequest, step: str) -> None:
    """Raises BadRequest for a request with tools, for a step that could only drop them."""
    if getattr(request, "tools", None):
        raise BadRequest(f"this model has the step {step}, which cannot answer with calls of tools", param="tools")
