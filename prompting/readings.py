"""The answer that a sample comes to, written in one way, so that equal answers are equal texts."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from penstock.chat import Message

Form = Literal["text", "number", "json"]
NUMBER = re.compile(r"(?:(?<![\w.)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
FENCE = re.compile(r"\A\s*```\w*\n(.*?)\n?```\s*\Z", re.DOTALL)
AROUND = " \t\r\n.!*`\"'$"


@dataclass(frozen=True, slots=True)
class Reading:
    """What follows the last `marker` counts, or all where there is none; of that the last match of `pattern`, its first
    group if it has one."""

    marker: str | None = None
    pattern: re.Pattern[str] | None = None
    form: Form = "text"

    def answer(self, message: Message) -> str | None:
        """None where there is none. Calls of tools are the answer where there are some."""
        if message.tool_calls:
            return called(message.tool_calls)
        text = self._extracted(message.text)
        if text is None or not text.strip():
            return None
        if self.form == "json":
            return parsed(text)
        if self.form == "number":
            numbers = NUMBER.findall(text)
            return plain(numbers[-1]) if numbers else None
        words = " ".join(text.strip(AROUND).casefold().split())
        return plain(words) if NUMBER.fullmatch(words) else words

    def _extracted(self, text: str) -> str | None:
        if self.marker:
            text = text.rpartition(self.marker)[2]
        if self.pattern is None:
            return text
        found = list(self.pattern.finditer(text))
        return (found[-1][1] if self.pattern.groups else found[-1][0]) if found else None


def plain(number: str) -> str:
    """`-1,200.50` -> `-1200.5`."""
    whole, _, part = number.replace(",", "").partition(".")
    sign, whole, part = "-" * whole.startswith("-"), whole.lstrip("-0"), part.rstrip("0")
    return f"{sign if whole or part else ''}{whole or '0'}{'.' if part else ''}{part}"


def parsed(text: str) -> str | None:
    """JSON with its keys in order and no space, fenced or not; None for what is no JSON."""
    fenced = FENCE.match(text)
    try:
        return canonical(json.loads(fenced[1] if fenced else text))
    except (ValueError, RecursionError):
        return None


def canonical(value: Any) -> str:
    return json.dumps(whole_numbers(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def whole_numbers(value: Any) -> Any:
    """1.0 as 1: JSON does not tell them apart."""
    if isinstance(value, dict):
        return {key: whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def called(calls: Sequence[dict[str, Any]]) -> str:
    """Names and arguments; the order of calls side by side says nothing, nor do their ids."""
    functions = [call.get("function") or {} for call in calls]
    pairs = [(str(function.get("name")), function.get("arguments") or "{}") for function in functions]
    return canonical(sorted([name, parsed(arguments) or arguments] for name, arguments in pairs))
