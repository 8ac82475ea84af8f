"""A conversation and what answers it.

Everything that can answer is a `Chat`; everything that changes an answer takes a `Chat` and is one. Text streams
through `emit` while the call runs; the returned `Reply` has the whole message, so a disconnect is plain task
cancellation and usage adds up through return values.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, PrivateAttr

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
    _plain: bool = PrivateAttr(False)

    @classmethod
    def completing(cls, prompt: str, **fields: Any) -> "ChatRequest":
        """A prompt to be gone on with as it stands, as of /v1/completions: no chat template is laid around it."""
        request = cls(messages=[Message(role="user", content=prompt)], **fields)
        request._plain = True
        return request

    @property
    def is_plain(self) -> bool:
        """Whether the one message is a prompt to be gone on with as it stands."""
        return self._plain

    def with_messages(self, messages: Sequence[Message]) -> "ChatRequest":
        return self.model_copy(update={"messages": list(messages)})

    def but(self, **fields: Any) -> "ChatRequest":
        """The same with other fields; None takes one away: `request.but(n=3, stream_options=None)`."""
        without = {name for name, value in fields.items() if value is None}
        kept = {name: value for name, value in self.to_wire().items() if name not in without}
        given = {name: value for name, value in fields.items() if value is not None}
        request = ChatRequest(**{**kept, "messages": self.messages, **given})
        request._plain = self._plain
        return request

    def to_wire(self) -> dict[str, Any]:
        """The body to send: exactly the fields that were given, known and unknown."""
        return self.model_dump(exclude_unset=True)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the engine counted them. `cached_tokens` are those of the prompt found in the prefix cache,
    `reasoning_tokens` those of the answer that the engine tells to be reasoning.

    `calls` says what they were used for where an answer took more than one call: each a step's name and its share,
    which has no calls of its own. What is in no call is the last one's.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    calls: tuple[tuple[str, "Usage"], ...] = ()
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.calls + other.calls,
            self.reasoning_tokens + other.reasoning_tokens,
        )

    def of(self, step: str) -> "Usage":
        """The same, used for `step`: `reply.usage.of("self_refine.critique")`."""
        own = replace(self, calls=())
        named = [(f"{step}/{name}", usage) for name, usage in self.calls]
        for _, usage in named:
            own = own.less(usage)
        rest = [(step, own)] if own != Usage() or not named else []
        return replace(self, calls=(*named, *rest))

    def less(self, other: "Usage") -> "Usage":
        """What is left without `other`, of no call in particular."""
        return Usage(
            self.prompt_tokens - other.prompt_tokens,
            self.completion_tokens - other.completion_tokens,
            self.cached_tokens - other.cached_tokens,
            reasoning_tokens=self.reasoning_tokens - other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer as it streams, of the choice with this index where a request has asked for several.
    `tool_calls` and `logprobs` have OpenAI's streaming shape."""

    content: str = ""
    reasoning: str = ""
    tool_calls: Sequence[dict[str, Any]] = ()
    logprobs: dict[str, Any] | None = None
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers to a request: the assistant's message, and why it ended; `stopped_by` is the stop string that
    has ended it, where the engine says so, and `stop_untold` that one may have, since the engine never does."""

    message: Message
    finish_reason: FinishReason = "stop"
    logprobs: dict[str, Any] | None = None
    stopped_by: str | None = None
    stop_untold: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The whole answer: the assistant's message, why it ended, what it cost; `others` are the choices beside the first
    one, as many as the request's `n` asks for."""

    message: Message
    finish_reason: FinishReason = "stop"
    usage: Usage = field(default_factory=Usage)
    logprobs: dict[str, Any] | None = None
    others: Sequence[Choice] = ()
    stopped_by: str | None = None
    stop_untold: bool = False

    @classmethod
    def of(cls, choices: Sequence[Choice], usage: Usage = Usage()) -> "Reply":
        """`choices`: at least one."""
        first, others = choices[0], choices[1:]
        stop = first.stopped_by, first.stop_untold
        return cls(first.message, first.finish_reason, usage, first.logprobs, others, *stop)

    @property
    def choices(self) -> list[Choice]:
        stop = self.stopped_by, self.stop_untold
        return [Choice(self.message, self.finish_reason, self.logprobs, *stop), *self.others]


Emit = Callable[[Delta], Awaitable[None]]


class Chat(Protocol):
    """Answers a conversation. Raises a `PenstockError` if it cannot; cancelling the call stops the generation."""

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply: ...


async def silent(delta: Delta) -> None:
    """The `Emit` of a caller that wants no stream."""
