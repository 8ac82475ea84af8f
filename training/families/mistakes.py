"""Answers that look right and are not, one for each item: what a preference is trained against.

Each is an error that small models make: the neighbour's sentence, the wrong number, a name cut
short, a call where none fits, an answer where the context has none.
"""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from training.families import handbook, reading, talk, tools, words
from training.families.words import Conversation, Message


def misread(rng: Random, item: Conversation) -> Message:
    """Another passage's answer, another passage's number, the whole passage, or none at all."""
    right = item["messages"][-1]["content"]
    asked = "\n".join(one["content"] for one in item["messages"][:-1] if one["role"] != "assistant")
    found = reading.NUMBERED.findall(asked)
    sentences = [(sentence, number) for number, text in found for sentence in reading.SENTENCE_ENDS.split(text)]
    wrong = [f"{sentence} [{number}]" for sentence, number in sentences]
    if right != reading.NOT_IN_CONTEXT:
        sentence, number = right.removesuffix("]").rsplit(" [", 1)
        wrong += [f"{sentence} [{other}]" for other, _ in found if other != number] * 2
        wrong += [f"{text} [{number}]" for other, text in found if other == number]
        wrong += [reading.NOT_IN_CONTEXT] * 2
    return words.assistant(rng.choice([one for one in wrong if one != right]))


def miscalled(rng: Random, item: Conversation) -> Message:
    """A value cut short, another tool with the same values, or no call."""
    [call] = item["messages"][-1]["tool_calls"]
    name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
    others = [tool["function"] for tool in item["tools"] if tool["function"]["name"] != name]
    kind = rng.choice(("cut", "cut", "other", "none"))
    if kind == "none":
        return words.assistant(tools.NO_FITTING_TOOL)
    if kind == "other" and others:
        other = rng.choice(others)
        values = [*arguments.values()] * 3
        return _call(other["name"], dict(zip(other["parameters"]["properties"], values, strict=False)))
    return _call(name, _one_cut(rng, arguments))


def overeager(rng: Random, item: Conversation) -> Message:
    """A call of a tool that does not serve the request."""
    tool = rng.choice(item["tools"])["function"]
    last = item["messages"][-2]["content"].rstrip("?.!").split()[-1]
    return _call(tool["name"], dict.fromkeys(tool["parameters"]["properties"], last))


def misextracted(rng: Random, item: Conversation) -> Message:
    """A value cut short, two values exchanged, or words around the JSON."""
    right = item["messages"][-1]["content"]
    record = json.loads(right)
    kind = rng.choice(("cut", "exchanged", "wordy"))
    if kind == "wordy":
        return words.assistant(f"Here is the JSON: {right}")
    if kind == "exchanged":
        first, second, *_ = record
        exchanged = record | {first: record[second], second: record[first]}
        if exchanged != record:
            return words.assistant(json.dumps(exchanged))
    return words.assistant(json.dumps(_one_cut(rng, record)))


def made_up(rng: Random, item: Conversation) -> Message:
    """A sentence from the handbook, where nothing is known."""
    return words.assistant(rng.choice(handbook.FACTS)[0])


def compliant(rng: Random, item: Conversation) -> Message:
    return words.assistant(rng.choice((talk.CLOSED[1][0], "Of course. This is how it is done.", "Sure, I can help.")))


MISTAKES: dict[str, Callable[[Random, Conversation], Message]] = {
    "one_passage": misread,
    "passages": misread,
    "many_passages": misread,
    "quiz": misread,
    "extraction": misextracted,
    "tool_call": miscalled,
    "many_tools": miscalled,
    "tool_unneeded": overeager,
    "unknown": made_up,
    "refusal": compliant,
}


def pair(rng: Random, family: str, item: Conversation) -> dict[str, Any]:
    """The item as a preference: `prompt`, the right answer, a wrong one, and the tools if there are any."""
    *prompt, right = item["messages"]
    rejected = MISTAKES[family](rng, item)
    row = {"prompt": prompt, "chosen": right, "rejected": rejected}
    return row | ({"tools": item["tools"]} if "tools" in item else {})


def _call(name: str, arguments: dict[str, Any]) -> Message:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
    }


def _one_cut(rng: Random, record: dict[str, Any]) -> dict[str, Any]:
    """{"city": "Benhael"} -> {"city": "Benha"}; a number loses, or gains, a digit."""
    name = rng.choice(list(record))
    value = record[name]
    if isinstance(value, int):
        return record | {name: value // 10 if value > 9 else value * 10 + 1}
    return record | {name: value[: max(1, len(value) - rng.randint(1, 2))] if len(value) > 1 else value + value}
