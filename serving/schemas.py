"""How large a grammar the engine would have to build: measured, never compiled. No pattern of a caller runs here.

What is measured is a tool, a response format or whatever else holds a JSON schema; the engine's structured output
turns it into an automaton, whose cost grows with depth, length and the length of patterns.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from penstock.config import Policy
from penstock.errors import BadRequest

PATTERNS = frozenset({"pattern", "regex", "whitespace_pattern"})
WRITTEN = frozenset({"json", "structural_tag"})  # in structured_outputs: documents, or documents written as text


def check_schema(value: Any, param: str, limits: Policy) -> int:
    """`param`: what the caller calls it. Returns its bytes, in linear time. Raises BadRequest for what is beyond the
    limits."""
    too_deep = f"it is nested more than {limits.max_schema_depth} levels deep (policy.max_schema_depth)"
    stack = [(value, 1)]
    while stack:
        node, depth = stack.pop()
        if depth > limits.max_schema_depth:
            raise BadRequest(f"{param}: {too_deep}", param=param)
        if type(node) is dict:
            for pattern in patterns_of(node):
                if len(pattern) > limits.max_pattern_chars:
                    raise BadRequest(
                        f"{param}: a pattern has {len(pattern)} characters, {limits.max_pattern_chars} at most "
                        "(policy.max_pattern_chars)",
                        param=param,
                    )
        inner = node.values() if type(node) is dict else node if type(node) is list else ()
        stack.extend((child, depth + 1) for child in inner if type(child) in (dict, list))
    try:
        size = len(orjson.dumps(value))
    except TypeError as error:
        raise BadRequest(f"{param}: {too_deep}", param=param) from error
    if size > limits.max_schema_bytes:
        raise BadRequest(
            f"{param}: it has {size} bytes, {limits.max_schema_bytes} at most (policy.max_schema_bytes)", param=param
        )
    return size


def patterns_of(node: dict[str, Any]) -> Iterator[str]:
    """The patterns of this level."""
    for name in PATTERNS:
        if type(node.get(name)) is str:
            yield node[name]
    named = node.get("patternProperties")
    if type(named) is dict:
        yield from named


def check_structured_outputs(value: Any, limits: Policy) -> None:
    """vLLM's own field, in which schemas may be written as text. Raises BadRequest."""
    if type(value) is not dict:
        raise BadRequest("structured_outputs must be an object such as {regex: ...}", param="structured_outputs")
    check_schema(value, "structured_outputs", limits)
    for name in WRITTEN:
        if type(value.get(name)) is str:
            param = f"structured_outputs.{name}"
            try:
                check_schema([orjson.loads(value[name])], param, limits)
            except orjson.JSONDecodeError as error:
                raise BadRequest(f"{param} is not valid JSON: {error}", param=param) from error
