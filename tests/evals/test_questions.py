"""What a gate asks, from its tree."""

import json
from pathlib import Path

import pytest

from evals.metrics import METRICS
from evals.prompts import HARMFUL, PLAIN, REFUSALS
from evals.questions import FAMILY_ITEMS, in_turn, questions, unique
from evals.tasks import Item
from penstock.errors import BadRequest
from penstock.gates import Asked, Gate, Parity, Safety
from penstock.trial import task
from training.families.talk import REFUSAL


def item(name: str, text: str) -> Item:
    return Item(name, [{"role": "user", "content": text}], ["x"])


def test_tasks_are_asked_as_the_gate_says() -> None:
    gate = Gate(tasks=[Asked(task="react", at_least=0.9), Asked(task="story", items=3, max_tokens=7)], safety=None)
    react, story = questions(gate, task).tasks
    assert (react.check, len(react.task.items), react.at_least, react.by) == (
        "task react",
        FAMILY_ITEMS,
        0.9,
        "interval",
    )
    assert len(story.task.items) == 3
    assert story.task.sampling["max_tokens"] == 7


def test_prompts_are_of_all_tasks_in_turn_and_none_comes_twice() -> None:
    lists = [[item("a1", "p"), item("a2", "q"), item("a3", "r")], [item("b1", "s"), item("b2", "q")]]
    assert [one.id for one in unique(in_turn(lists))] == ["a1", "b1", "a2", "a3"]
    gate = Gate(tasks=[Asked(task="react"), Asked(task="story")], parity=Parity(prompts=5), latency=None)
    assert [one.id for one in questions(gate, task).prompts] == ["react/0", "story/0", "react/1", "story/1", "react/2"]


def test_prompts_are_as_many_as_the_gate_says_unless_tasks_and_our_list_have_fewer() -> None:
    """Those of the tasks first; the default is no more than the list has."""
    assert len(questions(Gate(), task).prompts) == Parity().prompts
    few = Gate(tasks=[Asked(task="story", items=3)], safety=None)
    found = [one.id for one in questions(few, task).prompts]
    assert (len(found), found[:4]) == (Parity().prompts, ["story/0", "story/1", "story/2", "plain/0"])
    all_of_ours = questions(Gate(parity=Parity(prompts=100)), task).prompts
    assert [one.messages[0]["content"] for one in all_of_ours] == list(PLAIN)


def test_a_refusal_is_told_by_its_words() -> None:
    (asked,) = questions(Gate(), task).tasks
    assert (asked.check, len(asked.task.items)) == ("safety", len(HARMFUL))
    judge = METRICS[asked.task.metric]
    references = asked.task.items[0].answers
    assert judge("I\u2019m sorry, I CAN\u2019T HELP with that.", references) == 1
    assert judge(REFUSAL, references) == 1
    assert judge("Of course! First you take a pipe.", references) == 0
    assert judge("", references) == 0
    assert all(phrase == phrase.casefold() for phrase in REFUSALS)


def test_what_must_be_refused_and_how_can_be_said(tmp_path: Path) -> None:
    (family,) = questions(Gate(safety=Safety(prompts="refusal", items=4)), task).tasks
    assert (len(family.task.items), family.task.metric, family.task.items[0].answers) == (4, "verbatim", [REFUSAL])
    file = tmp_path / "harmful.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ({"prompt": "a"}, {"prompt": "b", "answers": ["never"]})))
    (own,) = questions(Gate(safety=Safety(prompts=str(file), refusals=["no"], exact=True)), task).tasks
    assert (own.task.metric, [one.answers for one in own.task.items]) == ("verbatim", [["no"], ["never"]])


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        (Gate(tasks=[Asked(task="nonsense")]), "neither a file nor one of the built-in tasks"),
        (Gate(tasks=[Asked(task="react", metric="rouge")]), "no metric is called 'rouge'"),
        (Gate(tasks=[Asked(task="react"), Asked(task="react", items=2)]), "asks task react twice"),
        (Gate(safety=Safety(prompts="nonsense")), "neither a file"),
    ],
)
def test_what_cannot_be_asked_is_told(gate: Gate, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        questions(gate, task)


@pytest.mark.parametrize(("text", "says"), [("", "has no prompts"), ('{"answers": ["no"]}', "line 1: an item needs")])
def test_a_file_without_prompts_is_told(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "harmful.jsonl"
    file.write_text(text)
    with pytest.raises(BadRequest, match=says):
        questions(Gate(safety=Safety(prompts=str(file))), task)
