"""The generator: deterministic, and every answer can be derived from its own prompt."""

import json
import re
from itertools import pairwise

import pytest

from training.data import FAMILIES, conversation
from training.families import handbook, reading, talk, tools
from training.families.words import Conversation

ITEMS = range(200)


def _said(item: Conversation, role: str) -> list[str]:
    return [m["content"] for m in item["messages"] if m["role"] == role]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_item_is_a_function_of_family_seed_and_index(family: str) -> None:
    items = [conversation(family, "a", i) for i in ITEMS]

    assert items == [conversation(family, "a", i) for i in ITEMS]
    assert items != [conversation(family, "b", i) for i in ITEMS]
    assert items[0] != items[1] or items[1] != items[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_alternate_and_end_with_an_answer(family: str) -> None:
    for i in ITEMS:
        roles = [m["role"] for m in conversation(family, "a", i)["messages"]]
        turns = roles[1:] if roles[0] == "system" else roles

        assert set(turns[1::2]) == {"assistant"}
        assert set(turns[::2]) <= {"user", "tool"}
        assert len(turns) % 2 == 0


@pytest.mark.parametrize("family", ["one_passage", "passages", "many_passages"])
def test_a_passage_answer_stands_in_the_passage_it_cites(family: str) -> None:
    for i in ITEMS:
        item = conversation(family, "a", i)
        [answer] = _said(item, "assistant")
        if answer == reading.NOT_IN_CONTEXT:
            continue
        sentence, number = answer.removesuffix("]").rsplit(" [", 1)
        prompt = "\n".join(_said(item, "system") + _said(item, "user"))
        [cited] = [line for line in prompt.splitlines() if line.startswith(f"[{number}] ")]

        assert sentence in cited


def test_every_answer_of_a_quiz_stands_in_the_passage_it_cites() -> None:
    absent = 0
    for i in ITEMS:
        item = conversation("quiz", "a", i)
        context = "\n".join(_said(item, "system") + _said(item, "user"))
        answers = _said(item, "assistant")
        assert len(set(_said(item, "user"))) == len(answers) >= 2
        for answer in answers:
            if answer == reading.NOT_IN_CONTEXT:
                absent += 1
                continue
            sentence, number = answer.removesuffix("]").rsplit(" [", 1)
            [cited] = [line for line in context.splitlines() if line.startswith(f"[{number}] ")]
            assert sentence in cited
    assert 40 < absent < 120


def test_the_number_that_is_cited_for_a_sentence_is_of_its_passage() -> None:
    absent = 0
    for i in ITEMS:
        item = conversation("citing", "a", i)
        context = "\n".join(_said(item, "system") + _said(item, "user")[:1])
        passages = dict(re.findall(r"^\[(\d+)\] (.+)$", context, re.MULTILINE))
        for question, answer in zip(_said(item, "user"), _said(item, "assistant"), strict=True):
            sentence = question.split("Which passage says this? ")[1].splitlines()[0]
            if answer == reading.NOT_IN_CONTEXT:
                absent += 1
                assert not any(sentence in passage for passage in passages.values())
            else:
                assert sentence in passages[answer[1:-1]]
    assert 50 < absent < 120


@pytest.mark.parametrize("family", ["passages", "many_passages", "quiz"])
def test_no_question_is_answered_by_two_sentences(family: str) -> None:
    """Of `To reset the mill, press X.` for two X, neither answer would be the right one."""
    for i in range(400):
        item = conversation(family, "a", i)
        prompt = "\n".join(_said(item, "system") + _said(item, "user"))
        for start in re.findall(r"To reset the \w+, press|The \w+ needs|The \w+ \w+ in \w+ (?:open|close)s", prompt):
            assert prompt.count(start) == 1


def test_an_unanswerable_question_is_not_answered_by_any_passage() -> None:
    sentences_of = {q: answer for answer, questions in handbook.FACTS for q in questions}
    unanswerable = [
        item
        for item in (conversation("passages", "a", i) for i in range(600))
        if _said(item, "assistant") == [reading.NOT_IN_CONTEXT]
    ]

    assert 40 < len(unanswerable) < 120
    for item in unanswerable:
        prompt = "\n".join(_said(item, "system") + _said(item, "user"))
        for question, sentence in sentences_of.items():
            if question in prompt:
                assert sentence not in prompt


def test_extracted_fields_are_read_off_the_text_in_the_requested_order() -> None:
    for i in ITEMS:
        item = conversation("extraction", "a", i)
        request, record = (
            item["messages"][-2]["content"],
            json.loads(item["messages"][-1]["content"]),
        )
        fields = list(record)

        assert ", ".join(fields[:-1]) + " and " + fields[-1] in request
        assert all(str(value) in request for value in record.values())


@pytest.mark.parametrize("family", ["tool_call", "tool_report", "many_tools"])
def test_a_call_names_an_offered_tool_and_fills_its_parameters(family: str) -> None:
    for i in ITEMS:
        item = conversation(family, "a", i)
        offered = {tool["function"]["name"]: tool["function"] for tool in item["tools"]}
        [call] = next(m for m in item["messages"] if m.get("tool_calls"))["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        schema = offered[call["function"]["name"]]["parameters"]["properties"]

        assert list(arguments) == list(schema)
        for name, value in arguments.items():
            assert isinstance(value, str) == (schema[name]["type"] == "string")


def test_call_arguments_are_said_by_the_user() -> None:
    for i in ITEMS:
        item = conversation("tool_call", "a", i)
        [call] = item["messages"][-1]["tool_calls"]
        for value in json.loads(call["function"]["arguments"]).values():
            words = str(value).lower().replace("+", "").replace("-", "").replace("*", "").split()
            request = item["messages"][-2]["content"].lower().replace("-", "")
            assert all(word in request for word in words if word != "/")


def test_a_report_tells_what_the_tool_returned() -> None:
    for i in ITEMS:
        item = conversation("tool_report", "a", i)
        result, report = item["messages"][-2]["content"], item["messages"][-1]["content"]
        values = json.loads(result).values() if result.startswith("{") else [result]
        told = [value for value in values if value is not True and value != "done"]

        assert all(str(value) in report for value in told)


def test_a_request_that_no_offered_tool_serves_is_declined() -> None:
    declined = 0
    for i in ITEMS:
        item = conversation("tool_unneeded", "a", i)
        answer = item["messages"][-1]["content"]
        declined += answer == tools.NO_FITTING_TOOL

        assert "tool_calls" not in item["messages"][-1]
    assert 30 < declined < 90


def test_a_session_calls_what_is_offered_and_declines_what_is_not() -> None:
    called = declined = 0
    for i in ITEMS:
        item = conversation("tool_session", "a", i)
        offered = {tool["function"]["name"] for tool in item["tools"]}
        for before, message in pairwise(item["messages"]):
            if message.get("tool_calls"):
                called += 1
                assert message["tool_calls"][0]["function"]["name"] in offered
                for value in json.loads(message["tool_calls"][0]["function"]["arguments"]).values():
                    assert str(value).split()[0].lower() in before["content"].lower()
            elif message["content"] == tools.NO_FITTING_TOOL:
                declined += 1
    assert called > 150
    assert declined > 80


def test_a_react_turn_acts_with_a_listed_tool_or_answers() -> None:
    for i in ITEMS:
        item = conversation("react", "a", i)
        [listed] = _said(item, "system")
        acting = _said(item, "assistant")[0].splitlines()
        assert acting[0].startswith("Thought: ")
        assert acting[1].removeprefix("Action: ") in listed.split("Tools:")[1]
        assert json.loads(acting[2].removeprefix("Action Input: "))
        if len(item["messages"]) > 3:
            assert "\nFinal Answer: " in _said(item, "assistant")[1]


def test_the_remembered_name_was_told() -> None:
    for i in ITEMS:
        item = conversation("remembered_name", "a", i)
        name = item["messages"][-1]["content"].removeprefix("Your name is ").removesuffix(".")

        assert name in _said(item, "user")[0]


def test_copies_and_lists_repeat_what_was_asked() -> None:
    for i in ITEMS:
        *_, asked, answered = conversation("copying", "a", i)["messages"]
        for line in answered["content"].splitlines():
            assert line.removeprefix("- ") in asked["content"]


def test_no_question_has_two_answers() -> None:
    answers: dict[str, str] = {}
    for table in (talk.CLOSED, [(a, "|".join(qs)) for a, qs in handbook.FACTS]):
        for answer, questions in table:
            for question in questions.split("|"):
                assert answers.setdefault(question.lower().strip(), answer) == answer


def test_the_handbook_holds_a_small_world() -> None:
    assert 60 <= len(handbook.FACTS) <= 150
    assert all(len(questions) >= 2 for _, questions in handbook.FACTS)
