"""How a composed model is asked and answers, route by route: one conversation inside, the route's own words outside."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from penstock.chat import ChatRequest, Delta, Reply
from penstock.errors import BadRequest, PenstockError
from serving.bodies import refuse
from serving.fields import CHAT, MESSAGES, RESPONSES, TEXT
from serving.messages import messages
from serving.responses import responses
from serving.wire import ChatShape, TextShape


class Shape(Protocol):
    """An answer in a route's words, whole or as the events of a stream."""

    def whole(self, reply: Reply) -> dict[str, Any]: ...

    def first(self) -> bytes:
        """The events before the first piece."""

    def piece(self, delta: Delta) -> bytes:
        """Nothing where the route has no words for it."""

    def last(self, reply: Reply) -> bytes:
        """The events after the last piece, to the stream's end."""

    def failed(self, error: PenstockError) -> bytes:
        """The events before a stream's last one, which tells the error: the same for each who reads it."""

    def alive(self) -> bytes:
        """What says, while nothing comes, that something will."""


Asked = tuple[ChatRequest, Shape]
Surface = Callable[[Mapping[str, Any], str, str], Asked]
"""A body whose shape has been checked, the served model's name and the request's id -> what is asked, and how the
answer is to look. Raises BadRequest for what no composed model can do."""


def chat(body: Mapping[str, Any], model: str, request_id: str) -> Asked:
    shape = ChatShape(f"chatcmpl-{request_id}", model, int(time.time()), usage_wanted(body), body.get("n") or 1)
    return ChatRequest(**body), shape


def text(body: Mapping[str, Any], model: str, request_id: str) -> Asked:
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise BadRequest(f"the model {model!r} takes one prompt, as a string", param="prompt")
    refuse(("echo", "suffix", "best_of"), body, model)
    rest = {name: value for name, value in body.items() if name not in ("prompt", "messages")}
    shape = TextShape(f"cmpl-{request_id}", model, int(time.time()), usage_wanted(body))
    return ChatRequest.completing(prompt, **rest), shape


def usage_wanted(body: Mapping[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


SURFACES: Mapping[str, Surface] = {CHAT: chat, TEXT: text, RESPONSES: responses, MESSAGES: messages}
