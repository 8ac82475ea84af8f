"""The texts of requests that generate nothing (embeddings, scores, tokens), for steps that look at them."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from penstock.errors import BadRequest
from penstock.steps import OnInput
from serving import fields

READ = fields.PROMPTS | {"instruction", "chat_template_kwargs"}
"""Fields that a prompt is made of."""
UNREAD = frozenset("role type id tool_call_id tool_use_id url data media_type format detail".split())
"""Names in them under which no text stands that a model reads."""
TURNS = frozenset({"messages", "tools", "chat_template_kwargs"})
"""Where numbers are no tokens."""


async def changed(path: str, body: Mapping[str, Any], inputs: Sequence[OnInput]) -> dict[str, Any]:
    """The body with its texts as `inputs` let them through, in their order. Raises BadRequest for what is no text, so
    that nobody can look at it."""
    changed = copy.deepcopy(dict(body))
    places = list(texts_in(changed, path))
    texts: Sequence[str] = [holder[key] for holder, key in places]
    for on_input in inputs:
        texts = await on_input(texts)
    for (holder, key), text in zip(places, texts, strict=True):
        holder[key] = text
    return changed


def texts_in(body: dict[str, Any], path: str) -> Iterator[tuple[Any, Any]]:
    """Where they are, as holder and key. Raises BadRequest."""
    stack: list[tuple[Any, Any, str]] = [(body, name, name) for name in reversed(body) if name in READ]
    while stack:
        holder, key, name = stack.pop()
        value = holder[key]
        if isinstance(value, str):
            yield holder, key
        elif isinstance(value, list):
            if name not in TURNS and any(type(item) is int for item in value):
                raise BadRequest(f"{name}: a guarded model takes text, and no tokens, at {path}", param=name)
            stack += [(value, index, name) for index in range(len(value) - 1, -1, -1)]
        elif isinstance(value, dict):
            stack += [
                (value, each, name) for each in reversed(value) if each not in UNREAD or type(value[each]) is not str
            ]
