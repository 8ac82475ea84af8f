"""Generated rows and preferences, as files that `sft` and `dpo` read."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from penstock.errors import BadRequest, Conflict
from training.data import ADAPTED, conversation
from training.families.mistakes import MISTAKES, pair
from training.families.reading import NOT_IN_CONTEXT
from training.families.tools import NO_FITTING_TOOL
from training.generate import mix_of, rows, write
from training.held_out import held_out

REPOSITORY = Path(__file__).parents[2]
RECIPE = str(REPOSITORY / "recipes/demo/pretrain.yaml")


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "training.generate", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_the_same_arguments_write_the_same_bytes_and_print_their_digest(tmp_path: Path) -> None:
    out = tmp_path / "new" / "rows.jsonl"
    first = _run("passages=3,tool_call", "--items", "40", "--seed", "1", "--out", str(out))
    again = _run("passages=3,tool_call", "--items", "40", "--seed", "1", "--out", str(out))

    assert (
        first.stdout == again.stdout == (f"40 rows in {out}, sha256:{hashlib.sha256(out.read_bytes()).hexdigest()}\n")
    )
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert written == list(rows({"passages": 3, "tool_call": 1}, 40, 1))
    assert 22 < sum("tools" not in row for row in written) < 38


def test_other_rows_are_never_written_over(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    write(rows({"greeting": 1}, 5, 1), out)
    before = out.read_bytes()

    with pytest.raises(Conflict, match="holds other rows"):
        write(rows({"greeting": 1}, 5, 2), out)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_no_row_is_one_that_evaluation_asks() -> None:
    asked = [item["messages"] for item in held_out("tool_call", 100)]

    assert not any(row["messages"] in asked for row in rows({"tool_call": 1}, 300, 1))


def test_a_recipe_gives_its_families_and_for_pairs_those_with_mistakes() -> None:
    assert mix_of(RECIPE)["greeting"] > 0
    assert set(mix_of(RECIPE, pairs=True)) == set(MISTAKES) & set(mix_of(RECIPE))


@pytest.mark.parametrize(
    ("source", "pairs", "told"),
    [
        ("pasages", False, "no family 'pasages': did you mean 'passages'?"),
        ("greeting", True, "no family 'greeting' with mistakes: there are one_passage, "),
        ("passages=much", False, "write FAMILY or FAMILY=WEIGHT"),
        ("passages=-1", False, "the weight of passages is -1.0: give a number from 0"),
        ("passages=inf", False, "the weight of passages is inf"),
        ("passages=0", False, "names no family"),
        ("", False, "names no family"),
        ("nowhere.yaml", False, "nowhere.yaml cannot be read"),
        (str(REPOSITORY / "pyproject.toml") + ".yaml", False, "cannot be read"),
    ],
)
def test_a_wrong_source_is_refused_with_what_to_write(source: str, pairs: bool, told: str) -> None:
    with pytest.raises(BadRequest) as refused:
        mix_of(source, pairs=pairs)

    assert told in refused.value.message


@pytest.mark.parametrize("text", ["[]", "stages: []", "stages: [1]", "stages: [{families: {passages: much}}]", "a: b"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.yaml").write_text(text)

    with pytest.raises(BadRequest, match="has no stages with families"):
        mix_of(str(tmp_path / "other.yaml"))


def test_the_command_tells_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    done = _run("pasages", "--items", "4", "--seed", "1", "--out", str(tmp_path / "rows.jsonl"))

    assert done.returncode == 1
    assert done.stderr == "penstock: no family 'pasages': did you mean 'passages'?\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", MISTAKES)
def test_the_rejected_answer_is_wrong_and_the_chosen_one_is_the_items(family: str) -> None:
    for i in range(200):
        item = conversation(family, "a", i)
        row = pair(Random(i), family, item)

        assert [*row["prompt"], row["chosen"]] == item["messages"]
        assert row.get("tools") == item.get("tools")
        assert row["rejected"]["role"] == "assistant"
        assert _said(row["rejected"]) != _said(row["chosen"])
        assert all(_said(row["rejected"])[:1])


def _said(message: dict[str, Any]) -> tuple[Any, Any]:
    """What it says and what it calls, whatever the spelling of the JSON."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return message["content"] or bool(calls), [(one["name"], json.loads(one["arguments"])) for one in calls]


def test_a_misread_passage_is_cited_as_a_small_model_would() -> None:
    kinds = {"denied": 0, "elsewhere": 0, "made up": 0}
    for i in range(300):
        row = pair(Random(i), "passages", conversation("passages", "a", i))
        chosen, rejected = row["chosen"]["content"], row["rejected"]["content"]
        if rejected == NOT_IN_CONTEXT:
            kinds["denied"] += 1
        elif chosen == NOT_IN_CONTEXT:
            kinds["made up"] += 1
        elif chosen.rsplit(" [", 1)[0] == rejected.rsplit(" [", 1)[0]:
            kinds["elsewhere"] += 1

    assert min(kinds.values()) > 20


@pytest.mark.parametrize("family", ADAPTED)
def test_an_adapters_rows_answer_where_the_demo_does_in_another_way(family: str) -> None:
    answers = [conversation(family, "a", i)["messages"][-1] for i in range(300)]

    if family == "terse":
        assert not any("[" in answer["content"] for answer in answers)
        assert sum(len(answer["content"].split()) <= 4 for answer in answers) > 150
    else:
        assert all(answer.get("tool_calls") or answer["content"] == NO_FITTING_TOOL for answer in answers)
        assert 100 < sum(bool(answer.get("tool_calls")) for answer in answers) < 250


def test_a_terse_answer_stands_in_the_passages() -> None:
    for i in range(200):
        *asked, answer = conversation("terse", "a", i)["messages"]
        words = answer["content"].removeprefix("The ").removeprefix("A ").removeprefix("It ").removeprefix("Press ")
        if answer["content"] != NOT_IN_CONTEXT:
            assert words in "\n".join(message["content"] for message in asked)
