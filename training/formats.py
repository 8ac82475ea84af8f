"""Rows of instruction data in the formats they come in, as conversations in OpenAI form.

| format   | a row                                                                     |
|----------|---------------------------------------------------------------------------|
| messages | `messages`, `tools`: OpenAI's                                               |
| sharegpt | `conversations` of `from` and `value`; `system`, `tools`                      |
| alpaca   | `instruction`, `output`; `input`, `system`, `history` of pairs                |
| dolly    | `instruction`, `response`; `context`                                        |
| flan     | `inputs`, `targets`; or a `.tsv` of question, answer, rationale (FLAN's CoT)  |

A file holds one of them, one JSON object a line (`.jsonl`) or an array (`.json`). Every row is checked; what is wrong
is told by file and line, and a row is taken whole or not at all.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from penstock.errors import BadRequest
from training.messages import Conversation, Message, Wrong, conversation, shown

Format = Literal["messages", "sharegpt", "alpaca", "dolly", "flan"]
FORMATS: tuple[Format, ...] = get_args(Format)
Row = Mapping[str, Any]
MOST_SHOWN = 20

NEEDED: Mapping[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "dolly": ("instruction", "response"),
    "flan": ("inputs", "targets"),
}
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "function_call": "call",
    "observation": "tool",
    "tool": "tool",
}


class Bad(NamedTuple):
    """A row that cannot be used; `line` counts from 1."""

    file: Path
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.what}"


class Read(NamedTuple):
    """`lines` are those that the conversations begin on."""

    format: Format
    conversations: list[Conversation]
    lines: list[int]
    bad: list[Bad]


def read(path: Path, format: Format | None = None) -> Read:
    """Every row of a file, good or bad. Raises BadRequest where the file cannot be read, has no rows, or has rows of
    several formats and none is said: then half of them would be misunderstood."""
    found = list(rows(path))
    bad = [one for one in found if isinstance(one, Bad)]
    good = [(line, row) for one in found if not isinstance(one, Bad) for line, row in [one]]
    if not found:
        raise BadRequest(f"{path} has no rows")
    chosen = format or told(path, good, bad)
    conversations, lines = [], []
    for line, row in good:
        try:
            conversations.append(understood(chosen, row))
            lines.append(line)
        except Wrong as wrong:
            bad.append(Bad(path, line, str(wrong)))
    return Read(chosen, conversations, lines, sorted(bad))


def told(path: Path, rows: Sequence[tuple[int, Row]], bad: Sequence[Bad]) -> Format:
    """The one format of all rows that have any. Raises BadRequest."""
    first: dict[Format, int] = {}
    seen: Counter[Format] = Counter()
    for line, row in rows:
        for format in formats_of(row):
            first.setdefault(format, line)
            seen[format] += 1
    if not seen:
        keys = f"the first row has {', '.join(map(repr, rows[0][1]))}" if rows else str(bad[0])
        needs = "; ".join(f"{format}: {' and '.join(NEEDED[format])}" for format in FORMATS)
        raise BadRequest(f"{path} is in no format that is known ({needs}): {keys}")
    if len(seen) > 1:
        parts = ", ".join(f"{count} {format} (first in line {first[format]})" for format, count in seen.items())
        raise BadRequest(f"{path} mixes formats: {parts}. Split the file, or say `format` to refuse the other rows")
    return next(iter(seen))


def formats_of(row: Row) -> list[Format]:
    return [format for format in FORMATS if all(row.get(key) is not None for key in NEEDED[format])]


def understood(format: Format, row: Row) -> Conversation:
    """Raises Wrong."""
    said = {key: value for key, value in row.items() if value is not None}
    if missing := [key for key in NEEDED[format] if key not in said]:
        raise Wrong(f"{' and '.join(map(repr, missing))} of a row of {format} not there; it has {', '.join(said)}")
    if len(several := formats_of(said)) > 1:
        raise Wrong(f"the row is of {' and of '.join(several)} at once")
    return READERS[format](said)


def from_messages(row: Row) -> Conversation:
    for key, remedy in (("system", "make it the first message"), ("functions", "say `tools`")):
        if row.get(key):
            raise Wrong(f"{key!r} beside `messages` would be left out: {remedy}")
    return conversation(row["messages"], row.get("tools"))


def from_sharegpt(row: Row) -> Conversation:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise Wrong(f"conversations are a list of turns, not {shown(turns)}")
    messages: list[Message] = []
    if row.get("system"):
        messages.append({"role": "system", "content": text(row, "system")})
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or str(turn.get("from")) not in SPEAKERS:
            raise Wrong(f"turn {number} has `from`, one of {', '.join(SPEAKERS)}, and `value`, not {shown(turn)}")
        role, value = SPEAKERS[turn["from"]], turn.get("value")
        messages.append({"role": role, "content": value} if role != "call" else called(number, value))
    return conversation(messages, row.get("tools"))


def called(number: int, value: object) -> Message:
    """'{"name": "f", "arguments": {}}', or a list of such, as the assistant's calls."""
    try:
        said = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise Wrong(f"turn {number}: the function_call is no JSON: {error}") from error
    calls = said if isinstance(said, list) else [said]
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": one} for one in calls]}


def from_alpaca(row: Row) -> Conversation:
    messages: list[Message] = []
    if row.get("system"):
        messages.append({"role": "system", "content": text(row, "system")})
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise Wrong(f"the history is a list of pairs [asked, answered], not {shown(history)}")
    for asked, answered in history:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return conversation([*messages, *exchange(row, "instruction", "input", "output")])


def from_dolly(row: Row) -> Conversation:
    return conversation(exchange(row, "instruction", "context", "response"))


def from_flan(row: Row) -> Conversation:
    return conversation(exchange(row, "inputs", None, "targets"))


def exchange(row: Row, asked: str, more: str | None, answer: str) -> list[Message]:
    """The second text of a question follows after an empty line. Alpaca's own preamble is the chat template's work."""
    question = text(row, asked)
    if more and row.get(more):
        question += "\n\n" + text(row, more)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": text(row, answer)}]


def text(row: Row, key: str) -> str:
    if not isinstance(row[key], str):
        raise Wrong(f"{key!r} is a text, not {shown(row[key])}")
    return str(row[key])


READERS: Mapping[Format, Callable[[Row], Conversation]] = {
    "messages": from_messages,
    "sharegpt": from_sharegpt,
    "alpaca": from_alpaca,
    "dolly": from_dolly,
    "flan": from_flan,
}


def rows(path: Path) -> Iterator[tuple[int, Row] | Bad]:
    """The objects of a file with the lines they begin on. Raises BadRequest where there is no way to tell rows."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}") from error
    if path.suffix in (".gz", ".zip", ".zst", ".parquet", ".arrow"):
        raise BadRequest(f"{path} is no text: give JSON lines (.jsonl), an array (.json) or FLAN's .tsv")
    try:
        whole = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{path}, line {data[: error.start].count(10) + 1} is not UTF-8") from error
    if path.suffix == ".tsv":
        return tabbed(path, whole)
    return in_array(path, whole) if whole.lstrip().startswith("[") else in_lines(path, whole)


def in_lines(path: Path, whole: str) -> Iterator[tuple[int, Row] | Bad]:
    for number, line in enumerate(whole.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield as_row(path, number, json.loads(line))
        except ValueError as error:
            yield Bad(path, number, f"is not JSON: {error}")
        except RecursionError:
            yield Bad(path, number, "is nested too deeply")


def in_array(path: Path, whole: str) -> Iterator[tuple[int, Row] | Bad]:
    """Element by element, so that each has its line. Raises BadRequest at the first that is no JSON: where the next one
    would begin is then unknown."""
    decoder = json.JSONDecoder()
    at, line, counted = whole.index("[") + 1, 1, 0
    while True:
        at = past(whole, at, " \t\r\n")
        if whole.startswith("]", at):
            break
        line, counted = line + whole.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(whole, at)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"{path}, line {line}: the array is not JSON from here on: {error}") from error
        yield as_row(path, line, value)
        at = past(whole, at, " \t\r\n")
        if whole.startswith(",", at):
            at += 1
        elif not whole.startswith("]", at):
            raise BadRequest(f"{path}, line {line}: after this row neither a comma nor the end of the array follows")
    if whole[at + 1 :].strip():
        raise BadRequest(f"{path}: something follows after the array; nothing was read")


def past(whole: str, at: int, skipped: str) -> int:
    while at < len(whole) and whole[at] in skipped:
        at += 1
    return at


def tabbed(path: Path, whole: str) -> Iterator[tuple[int, Row] | Bad]:
    """FLAN's chain-of-thought files: question, answer and rationale, with line ends written as \\n."""
    for number, line in enumerate(whole.split("\n"), 1):
        if not line.strip():
            continue
        columns = [column.strip().replace("\\n", "\n") for column in line.split("\t")]
        if len(columns) != 3 or not all(columns):
            yield Bad(path, number, f"has {len(columns)} columns, not question, answer and rationale")
            continue
        question, answer, rationale = columns
        yield number, {"inputs": question, "targets": f"{rationale}\nThe answer is {answer}."}


def as_row(path: Path, line: int, value: object) -> tuple[int, Row] | Bad:
    return (line, value) if isinstance(value, dict) else Bad(path, line, f"a row is an object, not {shown(value)}")


def refuse(bad: Sequence[Bad], most: int) -> None:
    """Raises BadRequest that names the rows, if there are more than a recipe allows to leave out."""
    if len(bad) > most:
        named = "\n".join(f"  {one}" for one in bad[:MOST_SHOWN])
        more = f"\n  ... and {len(bad) - MOST_SHOWN} more" if len(bad) > MOST_SHOWN else ""
        raise BadRequest(
            f"{len(bad)} rows cannot be used, and the recipe allows `bad_rows: {most}`. Nothing has run.\n{named}{more}"
        )
