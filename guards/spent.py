"""What the calls cost that guards make of served models: their share of an answer's usage."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from penstock.chat import Chat, ChatRequest, Emit, Reply, Usage
from penstock.steps import Parts

costs: ContextVar[list[Usage] | None] = ContextVar("costs", default=None)
"""Of the look that runs, with all that it does beside one another."""


@contextmanager
def counted() -> Iterator[list[Usage]]:
    """What is asked within; also of calls whose look fails after them."""
    own: list[Usage] = []
    token = costs.set(own)
    try:
        yield own
    finally:
        costs.reset(token)


class Counting:
    """`Parts` whose calls are noted where a look makes them."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @property
    def folder(self) -> Path:
        return self._parts.folder

    def chat(self, model: str) -> Chat:
        chat = self._parts.chat(model)

        async def told(request: ChatRequest, emit: Emit) -> Reply:
            reply = await chat(request, emit)
            noted(reply.usage)
            return reply

        return told

    async def ask(self, model: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = await self._parts.ask(model, path, body)
        said = answer.get("usage")
        tokens = said.get("prompt_tokens") if isinstance(said, Mapping) else None
        if isinstance(tokens, int):
            noted(Usage(tokens))
        return answer


def noted(usage: Usage) -> None:
    own = costs.get()
    if own is not None and usage != Usage():
        own.append(usage)
