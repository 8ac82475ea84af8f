"""Several samples for one answer: asked for in one request, so that the engine reads the prompt once."""

from collections.abc import Sequence
from dataclasses import replace

from penstock.chat import Chat, ChatRequest, Choice, Delta, Emit, Usage, silent
from penstock.errors import BadRequest, EngineError
from prompting.asking import reasoning_of
from prompting.split import saying

WHOLE = ("stop", "tool_calls", "function_call")


async def sampled(
    chat: Chat, request: ChatRequest, k: int, temperature: float | None
) -> tuple[list[Sequence[Choice]], Usage]:
    """`k` samples for each choice that the request asks for. Raises EngineError where fewer come."""
    count = getattr(request, "n", None) or 1
    call = request.but(n=count * k) if temperature is None else request.but(n=count * k, temperature=temperature)
    reply = await chat(call, silent)
    if len(reply.choices) != count * k:
        raise EngineError(f"{count * k} samples were asked for and {len(reply.choices)} came")
    return [reply.choices[at : at + k] for at in range(0, count * k, k)], reply.usage


def is_whole(choice: Choice) -> bool:
    """Whether it is an answer, and was not cut off."""
    said = choice.message.text.strip() or choice.message.tool_calls
    return bool(said) and choice.finish_reason in WHOLE


async def told(choice: Choice, index: int, note: str, emit: Emit) -> Choice:
    """Streams a chosen sample as the answer with this index; `note` is told as reasoning, after its own."""
    reasoning = "\n\n".join(filter(None, [reasoning_of(choice.message), note]))
    if reasoning:
        await emit(Delta(reasoning=reasoning, choice=index))
    calls = [{**call, "index": place} for place, call in enumerate(choice.message.tool_calls or ())]
    if choice.message.text or calls:
        await emit(Delta(content=choice.message.text, tool_calls=calls, choice=index))
    return replace(choice, message=saying(choice.message, choice.message.text, reasoning))


def without_logprobs(request: ChatRequest, step: str) -> None:
    """Raises BadRequest for a request for logprobs: the answer is chosen among many."""
    if getattr(request, "logprobs", None) or getattr(request, "top_logprobs", None):
        raise BadRequest(f"this model has the step {step}, whose answers have no logprobs", param="logprobs")
