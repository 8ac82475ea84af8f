"""Tasks from files and from the demo's families, and messages as text."""

import json
from pathlib import Path
from typing import Any

import pytest

from evals.metrics import verbatim
from evals.tasks import GREEDY, WORKED, load, written
from penstock.errors import BadRequest
from training.data import ADAPTED, FAMILIES, conversation
from training.held_out import task


def lines(path: Path, *rows: Any) -> Path:
    file = path / "task.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def test_a_file_of_prompts(tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
    file = lines(
        tmp_path, {"prompt": "2 + 2?", "answer": "4"}, "", {"id": "b", "messages": asked, "answers": ["Oslo", "Lund"]}
    )
    found = load(file)
    first, second = found.items
    assert (found.name, found.metric, found.sampling) == ("task.jsonl", "exact", GREEDY)
    assert (first.id, first.messages, first.answers) == ("1", [{"role": "user", "content": "2 + 2?"}], ["4"])
    assert (second.id, second.messages, second.answers) == ("b", asked, ["Oslo", "Lund"])
    assert load(file, "f1").metric == "f1"
    assert [item.id for item in found.first(1).items] == ["1"]


def test_gsm8ks_own_lines_are_known(tmp_path: Path) -> None:
    found = load(lines(tmp_path, {"question": "How many?", "answer": "2 * 3 = <<2*3=6>>6\n#### 6"}))
    assert found.metric == "number"
    assert found.items[0].messages[0]["content"] == WORKED.format("How many?")
    assert found.sampling["max_tokens"] > GREEDY["max_tokens"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "has no items"),
        (["{oops"], "line 1 is not JSON"),
        ([{"prompt": "a", "answer": "b"}, "5"], "line 2: an item is an object"),
        ([{"answer": "b"}], "line 1: an item needs `prompt` or `messages`"),
        ([{"messages": [], "answer": "b"}], "needs `prompt` or `messages`"),
        ([{"messages": ["hi"], "answer": "b"}], "needs `prompt` or `messages`"),
        ([{"prompt": "a"}], "`answer` must be a text"),
        ([{"prompt": "a", "answers": []}], "`answer` must be a text"),
        ([{"prompt": "a", "answer": 4}], "`answer` must be a text"),
        ([{"id": 1, "prompt": "a", "answer": "b"}] * 2, "line 2: the id '1' is there already"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(tmp_path: Path, rows: list[Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        load(lines(tmp_path, *rows))


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot read"):
        load(tmp_path / "none")
    with pytest.raises(BadRequest, match="use one of verbatim, exact, f1, number"):
        load(lines(tmp_path, {"prompt": "a", "answer": "b"}), "rouge")


def calling(arguments: str, content: str | None = None) -> dict[str, Any]:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def test_tool_calls_are_equal_when_they_mean_the_same() -> None:
    assert written(calling('{"a": 1, "b": 2}')) == written(calling('{"b":2,"a":1}', ""))
    assert written(calling('{"a": 1}')) != written(calling('{"a": "1"}'))
    assert written(calling('{"a": 1}')) != written(calling('{"a": 1}', "Well."))
    assert written(calling("oops")) == '{"arguments":"oops","name":"f"}'
    assert written({"role": "assistant", "content": None}) == ""


@pytest.mark.parametrize("family", [*FAMILIES, *ADAPTED])
def test_a_familys_task_asks_all_but_the_last_turn(family: str) -> None:
    found = task(family, 3)
    for index, item in enumerate(found.items):
        whole = conversation(family, "evaluation", index)
        assert [*item.messages, whole["messages"][-1]] == whole["messages"]
        assert list(item.tools) == whole.get("tools", [])
        assert verbatim(written(whole["messages"][-1]), item.answers) == 1
        assert item.answers[0]


def test_the_digest_tells_tasks_apart() -> None:
    one = task("react", 3)
    assert one.digest == task("react", 3).digest
    assert len({one.digest, one.first(2).digest, task("label", 3).digest}) == 3


@pytest.mark.parametrize("answer", ["A", "The", "+", "?!"])
def test_an_answer_of_which_nothing_is_left_is_refused_where_an_empty_one_would_be_right(
    tmp_path: Path, answer: str
) -> None:
    file = tmp_path / "choices.jsonl"
    file.write_text(json.dumps({"prompt": "A or B?", "answer": answer}))
    with pytest.raises(BadRequest, match=r"line 1: .*use the metric verbatim"):
        load(file)
    assert load(file, "verbatim").items[0].answers == [answer]
