"""What vLLM 0.32 sends, byte by byte: the chunks and bodies of chat and plain completions."""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from engine.sim.asked import Asked
from engine.sim.moves import Event

FINGERPRINT = "penstock-sim"
DONE = Event("last", b"data: [DONE]\n\n")


@dataclass(frozen=True, slots=True)
class Used:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def document(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice that is complete."""

    index: int
    text: str
    reason: str  # "stop" or "length"
    stop: str | None  # the stop string that ended it


class Shape(Protocol):
    def opening(self, used: Used) -> Iterable[Event]:
        """The events before the first text."""

    def piece(self, index: int, text: bytes) -> bytes:
        """The event of one token; `text` is JSON already."""

    def finish(self, ended: Ended, text: bytes) -> Iterable[Event]:
        """The events that end a choice, with its last text."""

    def ending(self, ended: Sequence[Ended], used: Used) -> Iterable[Event]:
        """The events after all choices."""

    def whole(self, ended: Sequence[Ended], used: Used) -> bytes: ...

    def error(self, document: Mapping[str, Any]) -> list[Event]:
        """vLLM's error inside a stream, and what it sends after it."""


def identity(prefix: str) -> str:
    return f"{prefix}{random.getrandbits(64):016x}"


def data(document: Any) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


class Chat:
    """/v1/chat/completions."""

    prefix, object, whole_object = "chatcmpl-", "chat.completion.chunk", "chat.completion"
    before, after = b'"delta":{"content":', b'},"logprobs":null,'
    before_thought = b'"delta":{"reasoning":'
    goes_on = b'"finish_reason":null,"token_ids":null}]}\n\n'

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.frame = {"id": identity(self.prefix), "object": self.object, "created": int(time.time())}
        self.frame["model"] = asked.model
        opened = orjson.dumps(self.frame)[:-1]
        before = self.before_thought if asked.thinking else self.before
        self.heads = [
            b'data: %b,"choices":[{"index":%d,%b' % (opened, index, before) for index in range(len(asked.prompts))
        ]
        self.tail = self.after + self.goes_on

    def opening(self, used: Used) -> Iterable[Event]:
        for index in range(len(self.asked.prompts)):
            delta = {"role": "assistant", "content": ""}
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            yield Event("role", data({**self.frame, "choices": [choice]}))

    def piece(self, index: int, text: bytes) -> bytes:
        return self.heads[index] + text + self.tail

    def finish(self, ended: Ended, text: bytes) -> Iterable[Event]:
        why = orjson.dumps({"finish_reason": ended.reason, "stop_reason": ended.stop, "token_ids": None})[1:]
        yield Event("finish", self.heads[ended.index] + text + self.after + why + b"]}\n\n")

    def ending(self, ended: Sequence[Ended], used: Used) -> Iterable[Event]:
        if self.asked.usage_wanted:
            last = {"choices": [], "usage": used.document(), "system_fingerprint": FINGERPRINT}
            yield Event("usage", data({**self.frame, **last}))
        yield DONE

    def whole(self, ended: Sequence[Ended], used: Used) -> bytes:
        document = {**self.frame, "object": self.whole_object, "choices": [self.choice(one) for one in ended]}
        return orjson.dumps({**document, "system_fingerprint": FINGERPRINT, "usage": used.document()})

    def choice(self, ended: Ended) -> dict[str, Any]:
        content, reasoning = (None, ended.text) if self.asked.thinking else (ended.text, None)
        message = {"role": "assistant", "content": content, "refusal": None, "reasoning": reasoning}
        return {"index": ended.index, "message": message, "logprobs": None, **self.why(ended)}

    def why(self, ended: Ended) -> dict[str, Any]:
        return {"finish_reason": ended.reason, "stop_reason": ended.stop, "token_ids": None}

    def error(self, document: Mapping[str, Any]) -> list[Event]:
        return [Event("extra", data(document)), DONE]


class Completion(Chat):
    """/v1/completions."""

    prefix, object, whole_object = "cmpl-", "text_completion", "text_completion"
    before, after = b'"text":', b',"logprobs":null,'
    before_thought = before
    goes_on = b'"finish_reason":null,"stop_reason":null,"token_ids":null}]}\n\n'

    def opening(self, used: Used) -> Iterable[Event]:
        return ()

    def choice(self, ended: Ended) -> dict[str, Any]:
        return {"index": ended.index, "text": ended.text, "logprobs": None, **self.why(ended)}
