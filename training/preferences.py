"""Pairs of answers, the preferred and the other, from JSON lines of `prompt`, `chosen`, `rejected` and `tools`.

A prompt is a list of messages, or the user's text; an answer a message, a list of them, or the assistant's text.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from penstock.errors import BadRequest
from training.formats import Bad, rows
from training.messages import Conversation, Message, Wrong, conversation, shown


class Pair(NamedTuple):
    """Two conversations that differ in their answers; what stands before these has a weight of 0."""

    chosen: Conversation
    rejected: Conversation


class Read(NamedTuple):
    pairs: list[Pair]
    lines: list[int]
    bad: list[Bad]


def read(path: Path) -> Read:
    """Every row of a file, good or bad. Raises BadRequest where it cannot be read or has no rows."""
    pairs, lines, bad = [], [], []
    for row in rows(path):
        if isinstance(row, Bad):
            bad.append(row)
            continue
        line, said = row
        try:
            pairs.append(pair(said))
            lines.append(line)
        except Wrong as wrong:
            bad.append(Bad(path, line, str(wrong)))
    if not pairs and not bad:
        raise BadRequest(f"{path} has no rows")
    return Read(pairs, lines, bad)


def pair(row: Mapping[str, Any]) -> Pair:
    """Raises Wrong."""
    if missing := [key for key in ("prompt", "chosen", "rejected") if row.get(key) is None]:
        raise Wrong(f"{' and '.join(missing)} not there; a pair has prompt, chosen and rejected")
    prompt = turns("prompt", row["prompt"], "user")
    if prompt[-1].get("role") == "assistant":
        raise Wrong("the prompt ends with an answer: its last turn is the user's or a tool's")
    answers = {key: turns(key, row[key], "assistant") for key in ("chosen", "rejected")}
    for key, said in answers.items():
        if said[0].get("role") != "assistant":
            raise Wrong(f"{key} begins with the {said[0].get('role')}'s turn: give what comes after the prompt alone")
    if answers["chosen"] == answers["rejected"]:
        raise Wrong("chosen and rejected are the same: nothing is preferred")
    read_only = [{**one, "weight": 0} if one.get("role") == "assistant" else one for one in prompt]
    tools = row.get("tools")
    return Pair(*(conversation([*read_only, *answers[key]], tools) for key in ("chosen", "rejected")))


def turns(key: str, said: object, role: str) -> list[Message]:
    if isinstance(said, str):
        return [{"role": role, "content": said}]
    if isinstance(said, dict):
        said = [said]
    if not isinstance(said, list) or not said or not all(isinstance(one, dict) for one in said):
        raise Wrong(f"{key} is text, a message or a list of messages, not {shown(said)}")
    return said
