"""A task: items with their answers, how an answer is scored, how it is sampled."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from evals.metrics import METRICS, normalized
from penstock.errors import BadRequest

GREEDY: Mapping[str, Any] = {"temperature": 0, "max_tokens": 256}
WORKED = "{}\n\nThink step by step. End with the number alone, after ####."
WORKED_TOKENS = 1024


@dataclass(frozen=True)
class Item:
    """`answers`: each of them is right, as `written` has it."""

    id: str
    messages: Sequence[Mapping[str, Any]]
    answers: Sequence[str]
    tools: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Task:
    """`sampling`: the fields of a chat request beside its messages."""

    name: str
    metric: str
    items: Sequence[Item]
    sampling: Mapping[str, Any] = field(default_factory=lambda: GREEDY)

    @property
    def digest(self) -> str:
        """Two runs with the same digest were asked and scored the same."""
        whole = [self.metric, self.sampling, [vars(item) for item in self.items]]
        return hashlib.sha256(orjson.dumps(whole, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]

    def first(self, limit: int | None) -> "Task":
        return replace(self, items=self.items[:limit])


def written(message: Mapping[str, Any]) -> str:
    """A message as one text: its content, then each tool call as JSON with sorted keys, so that calls that mean the
    same are equal. {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]} -> {"arguments":{},"name":"f"}."""
    lines = [message.get("content") or ""]
    for call in message.get("tool_calls") or ():
        function = call["function"]
        try:
            arguments = orjson.loads(function["arguments"])
        except orjson.JSONDecodeError:
            arguments = function["arguments"]
        said = {"name": function["name"], "arguments": arguments}
        lines.append(orjson.dumps(said, option=orjson.OPT_SORT_KEYS).decode())
    return "\n".join(line for line in lines if line)


def load(path: Path, metric: str | None = None) -> Task:
    """A task from JSON lines: `prompt` or `messages` with `answer` or `answers` (and `tools`), scored by `exact`; or
    GSM8K's `question` and `answer`, scored by `number`. Raises BadRequest that names the line."""
    try:
        rows = list(read(path))
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"cannot read the task {path}: {error}") from error
    worked = bool(rows) and all("question" in row and "####" in str(row.get("answer")) for _, row in rows)
    items = [item(path, number, row, worked=worked) for number, row in rows]
    if not items:
        raise BadRequest(f"{path} has no items")
    seen: set[str] = set()
    for (number, _), one in zip(rows, items, strict=True):
        if one.id in seen:
            raise BadRequest(f"{path}, line {number}: the id {one.id!r} is there already; every item needs its own")
        seen.add(one.id)
    chosen = metric or ("number" if worked else "exact")
    if chosen not in METRICS:
        raise BadRequest(f"no metric is called {chosen!r}: use one of {', '.join(METRICS)}")
    if chosen in ("exact", "f1"):
        for (number, _), one in zip(rows, items, strict=True):
            if nothing := next((answer for answer in one.answers if answer and not normalized(answer)), None):
                raise BadRequest(
                    f"{path}, line {number}: of the answer {nothing!r} nothing is left once articles and punctuation "
                    "are taken off, so that an empty answer would be right: use the metric verbatim"
                )
    return Task(path.name, chosen, items, {**GREEDY, "max_tokens": WORKED_TOKENS} if worked else GREEDY)


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object with the number of its line, from 1; empty lines are none."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise BadRequest(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise BadRequest(f"{path}, line {number}: an item is an object, such as {EXAMPLE}")
            yield number, row


EXAMPLE = '{"prompt": "2 + 2?", "answer": "4"}'


def item(path: Path, line: int, row: Mapping[str, Any], *, worked: bool) -> Item:
    messages = row.get("messages")
    prompt = row.get("question" if worked else "prompt")
    if worked:
        prompt = WORKED.format(prompt)
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    if not (
        isinstance(messages, list) and messages and all(isinstance(one, dict) and "role" in one for one in messages)
    ):
        raise BadRequest(f"{path}, line {line}: an item needs `prompt` or `messages`, such as {EXAMPLE}")
    answers = row.get("answers", row.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not (isinstance(answers, list) and answers and all(isinstance(one, str) for one in answers)):
        raise BadRequest(
            f"{path}, line {line}: `answer` must be a text, or `answers` a list of texts, such as {EXAMPLE}"
        )
    return Item(str(row.get("id", line)), messages, answers, row.get("tools") or ())
