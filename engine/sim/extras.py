"""What an engine answers beside text: its models, tokens, embeddings."""

import base64
import math
import struct
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from engine.sim.asked import Model, Refused, chat_prompt, integer, known_model, required, token_ids
from engine.sim.words import decode, encode

DIMENSIONS = 64
STARTED = int(time.time())


def models(model: Model) -> dict[str, Any]:
    one = {
        "id": model.name,
        "object": "model",
        "created": STARTED,
        "owned_by": "penstock",
        "root": model.root or model.name,
        "parent": None,
        "max_model_len": model.max_model_len,
    }
    adapters = [
        {**one, "id": name, "root": str(folder), "parent": model.name} for name, folder in model.adapters.loaded.items()
    ]
    return {"object": "list", "data": [one, *adapters]}


def unloaded(body: Any, model: Model) -> str:
    """The answer to /v1/unload_lora_adapter."""
    name = body.get("lora_name") if isinstance(body, dict) else None
    if not model.adapters.unload(name):
        raise Refused(404, f"The lora adapter '{name}' cannot be found.", None)
    return f"Success: LoRA adapter '{name}' removed successfully."


def tokenized(body: Any, model: Model) -> dict[str, Any]:
    fields = checked(body, model)
    if "messages" in fields:
        prompt = chat_prompt(fields["messages"], None, bool(fields.get("continue_final_message")))
        ids = prompt.ids
    else:
        ids = encode(text(required(fields, "prompt"), "prompt"))
    strings = [decode([number]) for number in ids] if fields.get("return_token_strs") else None
    return {"count": len(ids), "max_model_len": model.max_model_len, "tokens": ids, "token_strs": strings}


def detokenized(body: Any, model: Model) -> dict[str, Any]:
    return {"prompt": decode(token_ids(required(checked(body, model), "tokens"), "tokens"))}


def counted(body: Any, model: Model) -> dict[str, Any]:
    """Anthropic's count_tokens."""
    fields = checked(body, model)
    return {"input_tokens": len(chat_prompt(required(fields, "messages"), fields.get("system"), False).ids)}


def embeddings(body: Any, model: Model) -> dict[str, Any]:
    fields = checked(body, model)
    dimensions = integer(fields, "dimensions", DIMENSIONS, 1, DIMENSIONS)
    inputs = token_lists(required(fields, "input"))
    as_text = fields.get("encoding_format") == "base64"
    vectors = [embedding(ids, dimensions) for ids in inputs]
    items = [
        {"index": index, "object": "embedding", "embedding": packed(vector) if as_text else vector}
        for index, vector in enumerate(vectors)
    ]
    count = sum(map(len, inputs))
    usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0, "prompt_tokens_details": None}
    return {
        "id": f"embd-{blake2b(repr(inputs).encode(), digest_size=8).hexdigest()}",
        "object": "list",
        "created": int(time.time()),
        "model": model.name,
        "data": items,
        "usage": usage,
    }


def embedding(ids: Sequence[int], dimensions: int) -> list[float]:
    """The sum of the tokens' directions, of length 1: texts that share words are near each other."""
    totals = [0.0] * dimensions
    for number in ids:
        direction = blake2b(b"%d" % number, digest_size=DIMENSIONS).digest()
        for place in range(dimensions):
            totals[place] += direction[place] - 127.5
    length = math.hypot(*totals) or 1.0
    return [total / length for total in totals]


def packed(vector: Sequence[float]) -> str:
    """Little-endian float32 in base64, which OpenAI's client asks for."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def token_lists(given: Any) -> list[list[int]]:
    """A text, tokens, or a list of either."""
    if isinstance(given, str):
        return [encode(given)]
    if not isinstance(given, list) or not given:
        raise Refused(400, "input must be text, tokens, or a list of either that is not empty", "input")
    if isinstance(given[0], int):
        return [token_ids(given, "input")]
    return [encode(item) if isinstance(item, str) else token_ids(item, "input") for item in given]


def checked(body: Any, model: Model) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object", "body", "Bad Request")
    known_model(body, model)
    return body


def text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Refused(400, f"{name} must be text", name)
    return value
