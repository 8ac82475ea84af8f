"""Simpler questions first."""

import pytest

from engine.scripted import Scripted
from prompting.least_to_most import BEGIN, LeastToMost, questions_in
from tests.prompting.conftest import Compose, asking, told

pytestmark = pytest.mark.anyio


async def test_each_is_answered_with_those_before_it(composed: Compose) -> None:
    engine = Scripted(["1. How old is Ada?\n2. And Bo?\n3. And Cy?", "7.", "9.", "Bo."])
    step = LeastToMost(questions=2, split="Name {count}.", answer="And now?")
    reply, streamed = await told(composed(engine, step), asking("Who is older?"))
    assert reply.message.content == streamed.content() == "Bo."
    turns = [turn.text for turn in engine.calls[-1].messages]
    assert turns[:3] == ["Who is older?", BEGIN, "Name 2."]
    assert turns[4:] == ["How old is Ada?", "7.", "And Bo?", "9.", "And now?"]
    for shorter, longer in zip(list(engine.calls), list(engine.calls)[1:], strict=False):
        assert longer.messages[: len(shorter.messages)] == shorter.messages
    assert streamed.reasoning().endswith("How old is Ada?\n\n7.\n\nAnd Bo?\n\n9.")


async def test_where_there_are_none_the_request_is_asked_as_it_came(composed: Compose) -> None:
    engine = Scripted(["It is simple enough.", "Bo."])
    reply, _ = await told(composed(engine, LeastToMost()), asking("Who is older?"))
    assert reply.message.content == "Bo."
    assert engine.calls[-1] == asking("Who is older?")
    assert len(engine.calls) == 2


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        ("First:\n1. How many?\n2) Since when?\nThese are all.", ["How many?", "Since when?"]),
        ("- How many\n* Since when?\n- How many", ["How many", "Since when?"]),
        ("How many?\nThat is all.\n  Since when? ", ["How many?", "Since when?"]),
        ("I would not know.", []),
        ("", []),
        ("1.\n\n-\n", []),
    ],
)
def test_questions_are_found(text: str, questions: list[str]) -> None:
    assert questions_in(text) == questions
