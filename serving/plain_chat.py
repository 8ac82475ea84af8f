"""The commonest chat, told by a dozen comparisons: never one that `ChatCompletions` in `serving/bodies.py` refuses."""

from collections.abc import Callable, Mapping
from typing import Any

INT64 = 2**63 - 1
PLAIN_ROLES = frozenset({"system", "developer", "user", "assistant"})
PLAIN_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "messages": lambda turns: True,
    "model": lambda name: type(name) is str and 0 < len(name) <= 512,
    "stream": lambda value: type(value) is bool,
    "max_tokens": lambda count: type(count) is int and 0 < count <= INT64,
    "max_completion_tokens": lambda count: type(count) is int and 0 < count <= INT64,
    "temperature": lambda value: type(value) in (int, float) and 0 <= value <= 2,
    "top_p": lambda value: type(value) in (int, float) and 0 <= value <= 1,
    "stream_options": lambda options: options == {"include_usage": True} and options["include_usage"] is True,
    "ignore_eos": lambda value: type(value) is bool,
    "prompt_cache_key": lambda key: type(key) is str,
    "user": lambda name: type(name) is str,
}


def is_plain_chat(body: Mapping[str, Any]) -> bool:
    """Whether the shape has nothing against this chat, told at a fifth of the price; False says nothing."""
    turns = body.get("messages")
    if type(turns) is not list or not turns:
        return False
    for turn in turns:
        if type(turn) is not dict or len(turn) != 2 or type(turn.get("content")) is not str:
            return False
        role = turn.get("role")
        if type(role) is not str or role not in PLAIN_ROLES:
            return False
    for name, value in body.items():
        good = PLAIN_FIELDS.get(name)
        if good is None or not good(value):
            return False
    return "model" in body
