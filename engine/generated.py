"""What of a stream was generated and is no text of the answer, and costs as much: reasoning, calls of tools."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

RESPONSES_PIECES = frozenset(
    {
        "response.reasoning_text.delta",
        "response.refusal.delta",
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.delta",
        "response.mcp_call_arguments.delta",
        "response.code_interpreter_call_code.delta",
    }
)


def beside_content(delta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What of a chat's delta was generated and is no content, by kind: one piece for each tool's call.

    {"tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]} -> ("tool_calls", "add{}").
    """
    yield "reasoning", as_text(delta.get("reasoning") or delta.get("reasoning_content"))  # some say it under both names
    yield "refusal", as_text(delta.get("refusal"))
    functions = [call.get("function") for call in delta.get("tool_calls") or ()]
    for function in (*functions, delta.get("function_call")):
        if function:
            yield "tool_calls", as_text(function.get("name")) + as_text(function.get("arguments"))


def as_text(piece: Any) -> str:
    """Nothing for none; what is no text, such as arguments that are an object, as JSON."""
    if type(piece) is str:
        return piece
    return orjson.dumps(piece).decode() if piece else ""
