"""What a sample comes to."""

import re
from typing import Any

import pytest

from penstock.chat import Message
from prompting.readings import Form, Reading


def read(text: str, **how: Any) -> str | None:
    return Reading(**how).answer(Message(role="assistant", content=text))


@pytest.mark.parametrize(
    ("text", "form", "answer"),
    [
        ("So it is. Answer: The  Nile.", "text", "the nile"),
        ("Answer: 3. No. Answer: **4**", "text", "4"),
        ("the Nile", "text", "the nile"),
        ("Answer: $1,200.00", "text", "1200"),
        ("Answer: 1,2,3", "text", "1,2,3"),
        ("She has 3 - 1 = 2 eggs left", "number", "2"),
        ("from 10-3", "number", "3"),
        ("it is -007.50 degrees", "number", "-7.5"),
        ("about -0.0", "number", "0"),
        ("none", "number", None),
        (' ```json\n{"b": 1.0, "a": [2]}\n``` ', "json", '{"a":[2],"b":1}'),
        ("{", "json", None),
        ("[" * 100_000, "json", None),
        (" ", "text", None),
    ],
)
def test_answers_are_written_in_one_way(text: str, form: Form, answer: str | None) -> None:
    assert read(text, marker="Answer:", form=form) == answer


def test_a_pattern_finds_the_last_match_or_its_group() -> None:
    assert read("<a>1</a> <a>2</a>", pattern=re.compile("<a>(.*?)</a>")) == "2"
    assert read("B or C", pattern=re.compile("[A-D]")) == "c"
    assert read("none", pattern=re.compile("[A-D]")) is None


def test_calls_are_told_apart_by_names_and_arguments_alone() -> None:
    def called(*pairs: tuple[str, str]) -> str | None:
        calls = [
            {"id": str(index), "function": {"name": name, "arguments": given}}
            for index, (name, given) in enumerate(pairs)
        ]
        return Reading().answer(Message(role="assistant", tool_calls=calls))

    assert called(("f", '{"a": 1, "b": 2}'), ("g", "")) == called(("g", "{}"), ("f", '{"b":2,"a":1.0}'))
    assert called(("f", '{"a": 1}')) != called(("f", '{"a": 2}'))
    assert called(("f", "{broken")) == called(("f", "{broken"))
