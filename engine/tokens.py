"""A prompt as the engine's own tokens, asked of the engine (`/tokenize`, vLLM's and SGLang's)."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from engine.asked import Asked
from engine.reading import CHAT, TEXT
from engine.replica import Replica
from penstock.errors import EngineError

TIMEOUT_S = 2.0
# What else of a chat request changes how its prompt is rendered.
RENDERED = ("messages", "tools", "chat_template_kwargs", "continue_final_message", "add_generation_prompt")


async def tokens_of(asked: Asked, replica: Replica) -> Sequence[int]:
    """The token ids of a request's prompt; empty for routes and prompts that have no single one. Raises EngineError."""
    body = asked.body
    if asked.path == CHAT:
        rendered = {name: body[name] for name in RENDERED if body.get(name) is not None}
        return (await tokenized(rendered, asked, replica))[0]
    if asked.path == TEXT and isinstance(body.get("prompt"), str):
        return (await tokenized({"prompt": body["prompt"]}, asked, replica))[0]
    return ()


async def tokens_in(text: str, asked: Asked, replica: Replica) -> int:
    """How many tokens a text is that was generated. Raises EngineError."""
    return (await tokenized({"prompt": text, "add_special_tokens": False}, asked, replica))[1]


async def tokenized(document: Mapping[str, Any], asked: Asked, replica: Replica) -> tuple[Sequence[int], int]:
    named = {"model": asked.name or replica.model or asked.body.get("model"), **document}
    answer = await replica.client.ask("POST", "/tokenize", orjson.dumps(named), timeout_s=TIMEOUT_S)
    try:
        counted = orjson.loads(answer.body)
        return counted["tokens"], int(counted["count"])
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{replica.name} does not tokenize: /tokenize answers {answer.status}") from error
