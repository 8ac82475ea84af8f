"""Goes on, on another replica, with a stream that was cut: asks for the rest of the same answer, where that is exact.

The text so far is sent back as the beginning of the assistant's turn (chat) or at the end of the prompt (completions),
with what is left of `max_tokens`. It is exact where the rest depends on nothing but the text before it: text alone, one
choice, no tools, schema, log-probabilities, penalties on what was generated, or seed. With temperature 0 the caller
gets the answer it would have got; above it, a sample of the same distribution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from engine import sse
from engine.asked import Asked, Receiver, Source
from engine.attempt import Attempt
from engine.reading import CHAT, TEXT, OpenAIReading
from engine.replica import Replica
from engine.tokens import tokens_in
from penstock.errors import StreamInterrupted

MARK = b": the engine's stream broke off; another replica goes on\n\n"

# What else a request may say. A field that is not here might make the rest depend on more than the text.
HARMLESS = frozenset(
    """model messages prompt stream stream_options temperature top_p top_k min_p max_tokens max_completion_tokens stop
    stop_token_ids repetition_penalty logit_bias skip_special_tokens
    spaces_between_special_tokens user metadata service_tier store safety_identifier prompt_cache_key
    prompt_cache_retention priority cache_salt request_id continue_final_message""".split()
)
# Harmless with these values alone.
IF_EQUAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "tools": ([],),
    "response_format": ({"type": "text"},),
    "parallel_tool_calls": (True, False),
    "tool_choice": ("none",),
    "modalities": (["text"],),
    "add_generation_prompt": (True,),
    # With them the text does not say all: a stop string may be cut in two, an end of text leaves no mark.
    "include_stop_str_in_output": (False,),
    "ignore_eos": (False,),
}


def is_exact(path: str, body: Mapping[str, Any]) -> bool:
    """Whether a cut answer to this request could be continued, as far as the request can tell."""
    if path == TEXT:
        # How many tokens an answer has where nothing is said, the engine alone knows.
        if not isinstance(body.get("prompt"), str) or body.get("max_tokens") is None:
            return False
    elif path != CHAT or not ends_in_text(body):
        return False
    for name, value in body.items():
        if value is not None and name not in HARMLESS and not is_harmless(name, value, body):
            return False
    return True


def ends_in_text(body: Mapping[str, Any]) -> bool:
    """Whether the turn that the caller began, if it did, is one that text can be added to."""
    return not body.get("continue_final_message") or isinstance(body["messages"][-1].get("content"), str)


def is_harmless(name: str, value: Any, body: Mapping[str, Any]) -> bool:
    """Whether a field that may matter does not, with this value and beside these others."""
    if name == "seed":
        return body.get("temperature") == 0
    if name == "add_generation_prompt" and body.get("continue_final_message"):
        return True
    return any(type(value) is type(good) and value == good for good in IF_EQUAL.get(name, ()))


@dataclass
class Said:
    """What the caller has of the answer: its text, under the identity that the first stream gave it."""

    text: str
    identity: Mapping[str, Any]

    @classmethod
    def by(cls, attempt: Attempt, before: "Said | None" = None) -> "Said | None":
        """None where something else than text was said."""
        reading = attempt.reading
        if not isinstance(reading, OpenAIReading) or not reading.only_text or reading.finished:
            return None
        text = "".join(reading.text)
        return cls(before.text + text, before.identity) if before else cls(text, reading.identity)


async def rest_of(asked: Asked, said: Said, replica: Replica) -> tuple[Asked, int]:
    """The request for the rest, and how many tokens were said. Raises EngineError, also where none are left."""
    count = await tokens_in(said.text, asked, replica)
    body = dict(asked.body)
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name) is not None:
            body[name] -= count
            if body[name] < 1:
                raise StreamInterrupted("the engine's stream broke off after its last token")
    if asked.path == TEXT:
        body["prompt"] += said.text
    elif said.text != said.text.strip():  # which templates strip, each in its own way
        raise StreamInterrupted("the engine's stream broke off beside white space")
    else:
        body["messages"] = with_beginning(body, said.text)
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    rest = Asked(
        asked.path, body, asked.headers, asked.hint, asked.deadline, hide_usage=asked.hide_usage, name=asked.name
    )
    return rest, count


def with_beginning(body: Mapping[str, Any], text: str) -> list[Any]:
    """The turns with what was said of the assistant's."""
    messages = list(body["messages"])
    if body.get("continue_final_message"):
        *earlier, last = messages
        return [*earlier, {**last, "content": last["content"] + text}]
    return [*messages, {"role": "assistant", "content": text}]


class Joined:
    """A receiver of the rest: the caller sees one stream, of the first one's identity, and one usage."""

    def __init__(self, receiver: Receiver, said: Said, tokens: int) -> None:
        self.receiver = receiver
        self.said = said
        self.tokens = tokens

    @property
    def source(self) -> Source | None:
        return self.receiver.source

    @source.setter
    def source(self, source: Source | None) -> None:
        self.receiver.source = source

    def begin(self, data: bytes) -> None:
        self.receiver.more(MARK + self._joined(data))

    def more(self, data: bytes) -> None:
        self.receiver.more(self._joined(data))

    def end(self, data: bytes) -> None:
        self.receiver.end(self._joined(data))

    def used(self, usage: Mapping[str, Any] | None, texts: Sequence[Sequence[str]]) -> None:
        """What the caller sees: one prompt, and all that was said."""
        text, *more = texts
        self.receiver.used(self._as_one(usage) if usage else None, [[self.said.text, *text], *more])

    def _as_one(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        more = {"prompt_tokens": -self.tokens, "completion_tokens": self.tokens}
        one = {name: count + more.get(name, 0) if name in more else count for name, count in usage.items()}
        details = one.get("prompt_tokens_details")
        if details and details.get("cached_tokens"):  # of the prompt alone, not of what was said
            one["prompt_tokens_details"] = {
                **details,
                "cached_tokens": min(details["cached_tokens"], one["prompt_tokens"]),
            }
        return one

    def _joined(self, data: bytes) -> bytes:
        return b"".join(self._rewritten(event) + b"\n\n" for event in data.split(b"\n\n") if event)

    def _rewritten(self, event: bytes) -> bytes:
        """The reading has seen that it is a comment, a chunk or the end."""
        payload = sse.parse(event).data
        if not payload.startswith(b"{"):
            return event
        chunk = orjson.loads(payload) | self.said.identity
        for choice in chunk["choices"]:
            if choice.get("delta"):
                choice["delta"].pop("role", None)
        if chunk.get("usage"):
            chunk["usage"] = self._as_one(chunk["usage"])
        return b"data: " + orjson.dumps(chunk)
