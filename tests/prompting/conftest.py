"""Steps over a scripted engine."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from penstock.chat import Chat, ChatRequest, Delta, Reply
from penstock.steps import Step

Compose = Callable[..., Chat]


class Bench:
    """`Parts` of a test: its folder, and the other served models that it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chats: dict[str, Chat] = {}

    def chat(self, model: str) -> Chat:
        return self.chats[model]

    def for_guard(self, name: str) -> "Bench":
        return self

    async def ask(self, model: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError


class Streamed:
    """An `Emit` that keeps what came."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []

    async def __call__(self, delta: Delta) -> None:
        self.deltas.append(delta)

    def content(self, choice: int = 0) -> str:
        return "".join(delta.content for delta in self.deltas if delta.choice == choice)

    def reasoning(self, choice: int = 0) -> str:
        return "".join(delta.reasoning for delta in self.deltas if delta.choice == choice)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def composed(bench: Bench) -> Compose:
    """`composed(chat, step, ...)`: the first step is the outermost, as in a configuration."""

    def compose(chat: Chat, *steps: Step) -> Chat:
        for step in reversed(steps):
            chat = step.around(bench)(chat)
        return chat

    return compose


def asking(text: str = "Which river is longest?", **fields: Any) -> ChatRequest:
    return ChatRequest(model="m", messages=fields.pop("messages", [{"role": "user", "content": text}]), **fields)


async def told(chat: Chat, request: ChatRequest) -> tuple[Reply, Streamed]:
    streamed = Streamed()
    return await chat(request, streamed), streamed
