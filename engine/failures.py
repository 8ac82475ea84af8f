"""What an engine says went wrong, as one of our errors.

vLLM 0.32 answers `{"error": {"message", "type": "BadRequestError", "code": 400}}`, `{"error": "Unauthorized"}` or
FastAPI's `{"detail": ...}`; SGLang `{"object": "error", "message": ...}`. Clients switch on OpenAI's string codes.
"""

import re
from typing import Any

import orjson

from penstock.errors import (
    BadRequest,
    BodyTooLarge,
    ContextLengthExceeded,
    EngineError,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
    ModelNotFound,
    NotFound,
    PenstockError,
    RateLimited,
)

TOO_LONG = re.compile(r"(?i)maximum context length|context length|max_model_len|maximum model length|too many tokens")
MAX_MESSAGE_CHARS = 2000
MAX_DIGITS = 9
VLLM_PARAMETER = re.compile(r" \(parameter=[^()]*\)$")
MEMORY_ADDRESS = re.compile(
    r"\b0x[0-9a-fA-F]{6,16}\b"
)  # Python's `<... object at 0x...>`, of use to who looks for a way in


def from_answer(status: int, body: bytes, retry_after: str | None = None) -> PenstockError:
    """An HTTP answer that is not a success -> the error to raise; `retry_after` is its header."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    said = retry_after or ""
    return from_document(status, document, int(said) if said.isdecimal() and len(said) <= MAX_DIGITS else None)


def from_document(status: int, document: Any, retry_after_s: int | None = None) -> PenstockError:
    """The same for a parsed body or for the error event of a stream, whose own code stands above `status`."""
    error = error_of(document)
    message = VLLM_PARAMETER.sub("", str(error.get("message") or "the engine gave no reason"))[:MAX_MESSAGE_CHARS]
    message = MEMORY_ADDRESS.sub("0x...", message)
    code = error.get("code")
    if isinstance(code, int) and 400 <= code < 600:
        status = code
    param = error.get("param") if isinstance(error.get("param"), str) else None
    kind = error_class(status, message, param)
    if param == "input_tokens":
        # The words by which Anthropic's clients and LangChain know that the conversation has to be shortened.
        param, message = "messages", f"prompt is too long: {message}"
    return kind(message, param=param, retry_after_s=retry_after_s)


def says_it_is_dead(error: PenstockError) -> bool:
    """Whether vLLM's front tells that the process behind it has ended: `EngineCore encountered an issue ...`."""
    return isinstance(error, EngineError) and ("EngineCore" in error.message or "EngineDead" in error.message)


def error_of(document: Any) -> dict[str, Any]:
    """The object with `message`, wherever this engine keeps it."""
    if not isinstance(document, dict):
        return {}
    error = document.get("error", document)
    if isinstance(error, str):
        return {"message": error}
    if isinstance(error, dict) and "message" not in error and "detail" in error:
        return {"message": str(error["detail"])}
    return error if isinstance(error, dict) else {}


def error_class(status: int, message: str, param: str | None) -> type[PenstockError]:
    match status:
        case 400 | 422:
            return ContextLengthExceeded if param == "input_tokens" or TOO_LONG.search(message) else BadRequest
        case 404:
            return ModelNotFound if "model" in message.lower() else NotFound
        case 413:
            return BodyTooLarge
        case 429:
            return RateLimited
        case 503:
            return EngineUnavailable
        case 408 | 504:
            return EngineTimeout
        case 401 | 403:
            return EngineRefused
        case _:
            return EngineError
