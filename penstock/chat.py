"""A conversation and what answers it.

Everything that can answer is a `Chat`; everything that changes an answer takes a `Chat` and is one. Text streams
through `emit` while the call runs; the returned `Reply` has the whole message, so a disconnect is plain task
cancellation and usage adds up through return values.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class Message(BaseModel):
    """One turn, in OpenAI's wire shape. Fields not named here are kept and travel on to the engine."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Role
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content as one string; the text parts joined where it comes as a list of parts."""
        if isinstance(self.content, list):
            return "".join(part.get("text") or "" for part in self.content if part.get("type") == "text")
        return self.content or ""


class ChatRequest(BaseModel):
    """What is asked, of which model. Unknown fields are kept: `ChatRequest(..., top_k=5).to_wire()` has `top_k`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str
    messages: list[Message]

    def with_messages(self, messages: Sequence[Message]) -> "ChatRequest":
        return self.model_copy(update={"messages": list(messages)})

    def to_wire(self) -> dict[str, Any]:
        """The body to send: exactly the fields that were given, known and unknown."""
        return self.model_dump(exclude_unset=True)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the engine counted them. `cached_tokens` are those of the prompt found in the prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer as it streams. `tool_calls` and `logprobs` have OpenAI's streaming shape."""

    content: str = ""
    reasoning: str = ""
    tool_calls: Sequence[dict[str, Any]] = ()
    logprobs: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The whole answer: the assistant's message, why it ended, what it cost."""

    message: Message
    finish_reason: FinishReason = "stop"
    usage: Usage = field(default_factory=Usage)
    logprobs: dict[str, Any] | None = None


Emit = Callable[[Delta], Awaitable[None]]


class Chat(Protocol):
    """Answers a conversation. Raises a `PenstockError` if it cannot; cancelling the call stops the generation."""

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply: ...


async def silent(delta: Delta) -> None:
    """The `Emit` of a caller that wants no stream."""
