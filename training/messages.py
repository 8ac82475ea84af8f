"""Conversations in OpenAI form as training takes them: checked, and made the same shape as an engine renders.

What cannot be trained on as it stands is refused with the reason. Nothing is mended on a guess.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
Conversation = dict[str, Any]
"""`{"messages": [...]}` with an optional `"tools"`; every assistant turn is an answer to learn, the last is one."""

ROLES = ("system", "developer", "user", "assistant", "tool")
FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "weight")
TEXTS = ("name", "tool_call_id", "reasoning_content")


class Wrong(ValueError):
    """A row that cannot be trained on; the text says why."""


def conversation(messages: object, tools: object = None) -> Conversation:
    """Raises Wrong unless the turns make sense in their order and the last one answers."""
    turns = checked(messages)
    if turns[-1]["role"] != "assistant":
        raise Wrong(f"the last turn is the {turns[-1]['role']}'s: nothing answers it, leave it out")
    whole: Conversation = {"messages": turns}
    if offered := offers(tools):
        whole["tools"] = offered
    try:
        json.dumps(whole, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Wrong(f"it holds what is no text in UTF-8: {error}") from error
    return whole


def checked(messages: object) -> list[Message]:
    """Turns in order, fields that say nothing left out. Raises Wrong."""
    if not isinstance(messages, list) or not messages:
        raise Wrong(f"messages are a list of turns, not {shown(messages)}")
    turns = [turn(number, message) for number, message in enumerate(messages, 1)]
    calling = False
    for number, one in enumerate(turns, 1):
        if one["role"] in ("system", "developer") and number > 1:
            raise Wrong(f"turn {number}: a {one['role']} turn stands first or nowhere")
        if one["role"] == "tool" and not calling:
            raise Wrong(f"turn {number}: a tool answers, but the assistant has called none before it")
        if calling and one["role"] != "tool" and turns[number - 2]["role"] != "tool":
            raise Wrong(f"turn {number}: the turn after calls of tools is a tool's result")
        calling = bool(one.get("tool_calls")) or (one["role"] == "tool" and calling)
    if all(one["role"] in ("system", "developer", "assistant") for one in turns[:2]):
        raise Wrong("the assistant answers before anybody has asked")
    return turns


def turn(number: int, message: object) -> Message:
    if not isinstance(message, dict):
        raise Wrong(f"turn {number} is an object with role and content, not {shown(message)}")
    said = {name: value for name, value in message.items() if value is not None}
    if said.get("role") not in ROLES:
        raise Wrong(f"turn {number}: the role is {shown(said.get('role'))}, not one of {', '.join(ROLES)}")
    if unknown := [name for name in said if name not in FIELDS]:
        raise Wrong(f"turn {number}: {unknown[0]!r} would be left out unseen; there are {', '.join(FIELDS)}")
    if said.get("weight", 1) not in (0, 1) or ("weight" in said and said["role"] != "assistant"):
        raise Wrong(f"turn {number}: an assistant's weight is 0 or 1, and nobody else has one")
    if odd := [name for name in TEXTS if not isinstance(said.get(name, ""), str)]:
        raise Wrong(f"turn {number}: {odd[0]} is text, not {shown(said[odd[0]])}")
    content = plain(number, said.get("content"))
    if not said.get("tool_calls"):
        said.pop("tool_calls", None)
    if "tool_calls" in said:
        if said["role"] != "assistant":
            raise Wrong(f"turn {number}: only the assistant calls tools")
        said["tool_calls"] = [call(number, one) for one in listed(number, said["tool_calls"])]
    elif content is None or (said["role"] in ("assistant", "user") and not content.strip()):
        raise Wrong(f"turn {number}: the {said['role']} says nothing")
    said["content"] = content or ""
    return said


def plain(number: int, content: object) -> str | None:
    """Text, or one part of text: how several are joined differs between templates."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        if len(content) == 1 and isinstance(content[0].get("text"), str):
            return str(content[0]["text"])
        raise Wrong(f"turn {number}: the content has {len(content)} parts: join them to one text")
    raise Wrong(f"turn {number}: the content is text, not {shown(content)}")


def call(number: int, one: object) -> dict[str, Any]:
    """Arguments as an object, as an engine gives them to the template."""
    function = one.get("function") if isinstance(one, dict) else None
    if not isinstance(one, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Wrong(f'turn {number}: a call is {{"function": {{"name": ..., "arguments": ...}}}}, not {shown(one)}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise Wrong(f"turn {number}: the arguments of {function['name']} are no JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise Wrong(f"turn {number}: the arguments of {function['name']} are an object, not {shown(arguments)}")
    named = {"id": one["id"]} if isinstance(one.get("id"), str) else {}
    return {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def listed(number: int, value: object) -> Sequence[object]:
    if not isinstance(value, list):
        raise Wrong(f"turn {number}: tool_calls is a list, not {shown(value)}")
    return value


def offers(tools: object) -> list[Mapping[str, Any]]:
    """Tools as a list, or as the JSON text of one, as data sets keep it."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except (ValueError, RecursionError) as error:
            raise Wrong(f"the tools are no JSON: {error}") from error
    if not tools:
        return []
    if not isinstance(tools, list):
        raise Wrong(f"the tools are a list, not {shown(tools)}")
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Wrong(f'a tool is {{"type": "function", "function": {{"name": ...}}}}, not {shown(tool)}')
    return tools


def shown(value: object) -> str:
    """A value as an error shows it: short, on one line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
