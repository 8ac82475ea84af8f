"""Several ways to begin, the promising ones gone on with."""

import pytest
from pydantic import ValidationError

from engine.scripted import Scripted
from penstock.chat import ChatRequest, Choice, Emit, Message, Reply, Usage
from prompting.tree_of_thoughts import TreeOfThoughts, grade_in
from tests.prompting.conftest import Bench, Compose, asking, told

pytestmark = pytest.mark.anyio


class Steps:
    """Steps are numbers below ten, and the larger ones are graded better; the answer is all of them."""

    def __init__(self) -> None:
        self.calls: list[ChatRequest] = []

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply:
        self.calls.append(request)
        steps = [turn.text for turn in request.messages if turn.role == "assistant"][1:]
        match request.messages[-1].text:
            case "first":
                said = ["2", "8", "5", "8"]
            case "next":
                said = [f"{int(steps[-1]) - 1}", f"{int(steps[-1]) + 1}", "1", "1"]
            case "grade":
                said = [f"It is {steps[-1]}/10"]
            case _:
                said = [" then ".join(steps)]
        said = said[: getattr(request, "n", None) or 1]
        choices = [Choice(Message(role="assistant", content=one)) for one in said]
        return Reply.of(choices, Usage(1, len(said)))


def searching(**options: object) -> TreeOfThoughts:
    asked = {"first": "first", "next": "next", "value": "grade", "answer": "answer"}
    return TreeOfThoughts.model_validate({"candidates": 4, **asked, **options})


async def test_the_best_branch_is_answered_from(composed: Compose) -> None:
    engine = Steps()
    step = searching(breadth=2, depth=2)
    reply, streamed = await told(composed(engine, step), asking())
    assert reply.message.content == "8 then 9"
    assert streamed.reasoning() == "(8/10) 8\n\n(5/10) 5\n\n(9/10) 9\n\n(7/10) 7"
    grown = [call for call in engine.calls if call.messages[-1].text in ("first", "next")]
    assert [getattr(call, "n", None) for call in grown] == [4, 4, 4]
    assert {getattr(call, "temperature", None) for call in grown} == {0.8}
    graded = [call.messages[-2].text for call in engine.calls if call.messages[-1].text == "grade"]
    assert graded == ["2", "8", "5", "7", "9", "1", "4", "6", "1"]  # the same step twice is graded once
    assert len(engine.calls) <= step.most_calls
    assert reply.usage.completion_tokens == 12 + 9 + 1
    assert [name for name, _ in reply.usage.calls].count("tree_of_thoughts.grade") == 9


async def test_one_branch_is_a_greedy_search(composed: Compose) -> None:
    engine = Steps()
    reply, _ = await told(composed(engine, searching(breadth=1, depth=3)), asking())
    assert reply.message.content == "8 then 9 then 10"


async def test_another_model_grades(composed: Compose, bench: Bench) -> None:
    engine, judge = Steps(), Scripted(["I cannot say.", "10", "3"])
    bench.chats["judge"] = judge
    tools = [{"type": "function", "function": {"name": "f"}}]
    step = searching(judge="judge", depth=1, breadth=1)
    reply, streamed = await told(composed(engine, step), asking(tools=tools))
    assert reply.message.content == "8"
    assert streamed.reasoning() == "(10/10) 8"
    assert len(judge.calls) == 3
    assert all(call.to_wire().keys() == {"model", "messages", "max_tokens"} for call in judge.calls)
    assert {call.model for call in judge.calls} == {"judge"}


async def test_a_grade_that_was_cut_is_none_and_so_is_an_empty_step(composed: Compose) -> None:
    engine = Scripted(["", "a", "", "b", "9 of ten parts", "6", "a or b"])
    reply, streamed = await told(composed(engine, searching(depth=1, max_tokens=2)), asking())
    assert streamed.reasoning() == "(6/10) b\n\n(0/10) a"
    assert reply.message.content == "a or b"


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("7", 7),
        ("From 1 to 10 I give it 7.", 7),
        ("7/10, not 3", 7),
        ("7.5 out of 10", 7.5),
        ("**10**", 10),
        ("0", 0),
        ("-3", 0),
        ("11/10", 0),
        ("2024", 0),
        ("surely", 0),
        ("9" * 5000, 0),
        ("", 0),
    ],
)
def test_grades_are_read(text: str, grade: float) -> None:
    assert grade_in(text) == grade


def test_a_tree_that_is_too_large_is_refused() -> None:
    assert TreeOfThoughts(breadth=5, depth=3, candidates=4).most_calls == 56
    with pytest.raises(ValidationError, match="may take 67 calls for an answer, of at most 64: lower one of them"):
        TreeOfThoughts(breadth=5, depth=3, candidates=5)
