"""What an engine's whole answer must be, family by family, to be passed on: never one that is cut or no answer."""

from collections.abc import Mapping
from typing import Any

import orjson

from engine.failures import from_document
from engine.reading import CHAT, EMBEDDINGS, GIVEN_UP, MESSAGES, RESPONSES, TEXT, choices_wanted, is_error
from penstock.errors import EngineError


def check_whole(path: str, body: bytes, asked: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns its usage, if it tells one.

    Raises EngineError for a body that is not the answer to this request, PenstockError for an error in a 200."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise EngineError("the engine's answer is not JSON") from error
    if not isinstance(document, dict):
        raise EngineError("the engine's answer is not a JSON object")
    if is_error(document) and not document.get("choices"):
        raise from_document(500, document)
    try:
        why = unfinished(path, document, asked)
    except (TypeError, AttributeError, KeyError):
        why = "is not in the shape of its route"
    if why:
        raise EngineError(f"the engine's answer {why}")
    usage = document.get("usage")
    return usage if isinstance(usage, dict) else None


def unfinished(path: str, document: dict[str, Any], asked: Mapping[str, Any]) -> str | None:
    """What of the answer is missing, if anything is."""
    if path in (CHAT, TEXT):
        part = "message" if path == CHAT else "text"
        choices = document["choices"]
        if len(choices) < choices_wanted(asked):
            return "has too few choices"
        for choice in choices:
            if choice[part] is None:
                return f"has a choice without {part}"
            reason = choice["finish_reason"]
            if not reason or reason in GIVEN_UP:
                return "was given up before its end"
    elif path == MESSAGES and not document["stop_reason"]:
        return "has no stop reason"
    elif path == RESPONSES and not document["status"]:
        return "has no status"
    elif path == EMBEDDINGS and not isinstance(document["data"], list):
        return "has no data"
    return None
