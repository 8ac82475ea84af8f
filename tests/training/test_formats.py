"""Data in five formats: understood, or refused by file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import BadRequest
from training.formats import FORMATS, Format, read, refuse

ASKED = {"role": "user", "content": "Who are you?"}
ANSWERED = {"role": "assistant", "content": "A model."}
ROWS: dict[Format, dict[str, Any]] = {
    "messages": {"messages": [ASKED, ANSWERED]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Who are you?"}, {"from": "gpt", "value": "A model."}]},
    "alpaca": {"instruction": "Who are you?", "input": "", "output": "A model."},
    "dolly": {"instruction": "Who are you?", "context": "", "response": "A model.", "category": "open_qa"},
    "flan": {"inputs": "Who are you?", "targets": "A model.", "task": "chat"},
}
CALL = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "find", "arguments": '{"of": "x"}'}}]}


def written(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("as_array", [False, True])
def test_a_file_of_each_format_is_known_by_its_rows(tmp_path: Path, format: Format, as_array: bool) -> None:
    rows = [ROWS[format], ROWS[format]]
    text = json.dumps(rows, indent=1) if as_array else "\n".join(map(json.dumps, rows))
    (tmp_path / "data").write_text(text)
    found = read(tmp_path / "data")

    assert found.format == format
    assert found.conversations == [{"messages": [ASKED, ANSWERED]}] * 2
    assert found.bad == []


def test_inputs_and_contexts_follow_the_instruction_and_history_comes_before_it(tmp_path: Path) -> None:
    alpaca = {
        "instruction": "Sum up.",
        "input": "A text.",
        "output": "Text.",
        "system": "Be short.",
        "history": [["a", "b"]],
    }
    dolly = {"instruction": "Sum up.", "context": "A text.", "response": "Text."}

    [one] = read(written(tmp_path / "alpaca.jsonl", alpaca)).conversations
    assert [(turn["role"], turn["content"]) for turn in one["messages"]] == [
        ("system", "Be short."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "Sum up.\n\nA text."),
        ("assistant", "Text."),
    ]
    [one] = read(written(tmp_path / "dolly.jsonl", dolly)).conversations
    assert one["messages"][0]["content"] == "Sum up.\n\nA text."


def test_calls_of_tools_come_with_arguments_as_objects(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    openai = {
        "messages": [ASKED, CALL, {"role": "tool", "tool_call_id": "1", "content": "y"}, ANSWERED],
        "tools": tools,
    }
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "Who are you?"},
            {"from": "function_call", "value": '{"name": "find", "arguments": {"of": "x"}}'},
            {"from": "observation", "value": "y"},
            {"from": "gpt", "value": "A model."},
        ],
        "tools": json.dumps(tools),
    }
    for name, row in (("openai", openai), ("sharegpt", sharegpt)):
        [one] = read(written(tmp_path / name, row)).conversations
        [call] = one["messages"][1]["tool_calls"]
        assert call["function"] == {"name": "find", "arguments": {"of": "x"}}
        assert one["tools"] == tools


def test_flans_chains_of_thought_end_with_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "cot.tsv"
    path.write_text("Is it?\\nOptions:\\n- yes\\n- no\tyes\tBecause it is.\nno columns here\n")
    found = read(path)

    assert found.conversations[0]["messages"][0]["content"] == "Is it?\nOptions:\n- yes\n- no"
    assert found.conversations[0]["messages"][1]["content"] == "Because it is.\nThe answer is yes."
    assert [str(bad) for bad in found.bad] == [f"{path}, line 2: has 1 columns, not question, answer and rationale"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{not json", "is not JSON"),
        ("[1, 2]", "a row is an object, not [1, 2]"),
        ({"text": "x"}, "'messages' of a row of messages not there; it has text"),
        ({"messages": []}, "a list of turns"),
        ({"messages": [ASKED]}, "nothing answers it"),
        ({"messages": [ANSWERED]}, "answers before anybody has asked"),
        ({"messages": [ASKED, {"role": "bot", "content": "x"}]}, 'turn 2: the role is "bot"'),
        ({"messages": [ASKED, {"role": "assistant", "content": " "}]}, "turn 2: the assistant says nothing"),
        ({"messages": [ASKED, {**ANSWERED, "thoughts": "x"}]}, "'thoughts' would be left out unseen"),
        ({"messages": [ASKED, {**ANSWERED, "weight": 0.5}]}, "weight is 0 or 1"),
        ({"messages": [ASKED, {**ASKED, "role": "system"}, ANSWERED]}, "a system turn stands first"),
        ({"messages": [ASKED, ANSWERED], "system": "Be kind."}, "'system' beside `messages` would be left out"),
        ({"messages": [ASKED, {**ANSWERED, "name": 3}]}, "turn 2: name is text, not 3"),
        ({"messages": [ASKED, {"role": ["user"]}, ANSWERED]}, 'the role is ["user"]'),
        ({"messages": [ASKED, ANSWERED], "tools": "[" * 100_000}, "the tools are no JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ({"messages": [ASKED, CALL, ANSWERED]}, "turn 3: the turn after calls of tools is a tool's result"),
        ({"messages": [ASKED, {"role": "tool", "content": "y"}, ANSWERED]}, "has called none before it"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWERED]}, "the content is text"),
        ({"messages": [ASKED, ANSWERED], "tools": "{"}, "the tools are no JSON"),
        ({"messages": [ASKED, {"role": "assistant", "content": "\ud800"}]}, "no text in UTF-8"),
        ({"messages": [ASKED, ANSWERED], "inputs": "a", "targets": "b"}, "of messages and of flan at once"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_the_others_are_kept(tmp_path: Path, row: object, why: str) -> None:
    path = written(tmp_path / "data.jsonl", ROWS["messages"], "", row, ROWS["messages"])
    found = read(path, "messages")

    assert len(found.conversations) == 2
    assert found.lines == [1, 4]
    [bad] = found.bad
    assert str(bad).startswith(f"{path}, line 3: ")
    assert why in bad.what


def test_a_file_of_several_formats_is_told_and_a_named_format_refuses_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path / "mixed.jsonl", ROWS["alpaca"], ROWS["alpaca"], ROWS["dolly"])
    with pytest.raises(BadRequest, match=r"mixes formats: 2 alpaca \(first in line 1\), 1 dolly \(first in line 3\)"):
        read(path)

    found = read(path, "alpaca")
    assert (len(found.conversations), found.bad[0].line) == (2, 3)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "has no rows"),
        (b'{"question": "x"}', "in no format that is known"),
        (b'[{"inputs": "a", "targets": "b"}, {"inputs": ', "line 1: the array is not JSON from here on"),
        (b'[\n{"inputs": "a", "targets": "b"}\n{}]', "line 2: after this row neither a comma"),
        (b'{"inputs": "\xff", "targets": "b"}', "line 1 is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_told_into_rows_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(BadRequest, match=why):
        read(tmp_path / "data")


def test_more_bad_rows_than_allowed_are_refused_by_name_and_number(tmp_path: Path) -> None:
    path = written(tmp_path / "data.jsonl", ROWS["flan"], *[{"inputs": "a", "targets": ""}] * 25)
    bad = read(path).bad

    refuse(bad, most=25)
    with pytest.raises(BadRequest) as refused:
        refuse(bad, most=24)
    assert "25 rows cannot be used" in refused.value.message
    assert f"{path}, line 2: turn 2: the assistant says nothing" in refused.value.message
    assert "and 5 more" in refused.value.message
