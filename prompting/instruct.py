"""Zero-shot: standing instructions, before everything that the caller says."""

from collections.abc import Coroutine, Sequence
from typing import Any

from pydantic import Field

from penstock.chat import Chat, ChatRequest, Emit, Message, Reply
from penstock.steps import Around, Parts, Step
from prompting.asking import chats_only


class Instruct(Step):
    """Instructions of the served model's own stand first; those of the caller follow in the same turn."""

    text: str = Field(min_length=1, description="what the model is told before the conversation")

    def around(self, parts: Parts) -> Around:
        def wrap(chat: Chat) -> Chat:
            def instructed(request: ChatRequest, emit: Emit) -> Coroutine[Any, Any, Reply]:
                chats_only(request, "instruct")
                return chat(request.with_messages(preceded(self.text, request.messages)), emit)

            return instructed

        return wrap


def preceded(text: str, turns: list[Message]) -> list[Message]:
    """`text` as the first system turn: one turn, since many chat templates take no second."""
    first = turns[0] if turns else None
    if first is None or first.role not in ("system", "developer"):
        return [Message(role="system", content=text), *turns]
    if isinstance(first.content, list):
        content: str | list[dict[str, object]] = [{"type": "text", "text": f"{text}\n\n"}, *first.content]
    else:
        content = f"{text}\n\n{first.text}"
    return [first.model_copy(update={"content": content}), *turns[1:]]


def opened(added: Sequence[Message], turns: Sequence[Message]) -> list[Message]:
    """`added` before the conversation, which the system turn stays in front of."""
    first = 1 if turns and turns[0].role in ("system", "developer") else 0
    return [*turns[:first], *added, *turns[first:]]
