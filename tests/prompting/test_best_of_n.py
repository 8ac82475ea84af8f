"""Best of n, by a judge or a reward model."""

import asyncio
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.scripted import Scripted
from penstock.chat import ChatRequest, Emit, Message, Reply, Usage, silent
from penstock.errors import BadRequest, BudgetSpent, EngineError
from prompting.best_of_n import BestOfN, Judge, Reward
from tests.prompting.conftest import Bench, Compose, asking, told

pytestmark = pytest.mark.anyio

JUDGED = BestOfN(k=3, judge=Judge(model="judge"))
REWARDED = BestOfN(k=3, reward=Reward(model="reward"))


class Rewarding(Bench):
    """With a reward model, which likes what stands in `scores`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.scores: dict[str, list[float]] = {}
        self.asked: list[tuple[str, str, Mapping[str, Any]]] = []
        self.chats["reward"] = Scripted()

    async def ask(self, model: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append((model, path, body))
        probs = self.scores[body["messages"][-1]["content"]]
        return {"data": [{"index": 0, "label": "LABEL_0", "probs": probs}], "usage": {"prompt_tokens": 7}}


@pytest.fixture
def bench(tmp_path: Path) -> Rewarding:
    return Rewarding(tmp_path)


async def test_the_answer_with_the_best_grade_wins(composed: Compose, bench: Bench) -> None:
    engine = Scripted(["one", "two", "three"])
    judge = bench.chats["judge"] = Scripted(["Poor.\nGrade: 3", "Good.\n**Grade: 9/10**", "Fair.\ngrade: 5"])
    reply, streamed = await told(composed(engine, JUDGED), asking(max_tokens=5, cache_salt="s"))
    assert reply.message.content == streamed.content() == "two"
    assert streamed.reasoning() == "The best of 3 different answers, graded 3, 9, 5."
    assert [getattr(call, "n", 1) for call in engine.calls] == [3]
    assert [name for name, _ in reply.usage.calls] == ["best_of_n", *["best_of_n.judge"] * 3]
    call = judge.calls[1].to_wire()
    assert (call["model"], call["temperature"], call["max_tokens"], call["cache_salt"]) == ("judge", 0, 512, "s")
    assert [(turn["role"], turn["content"]) for turn in call["messages"][:2]] == [
        ("user", "Which river is longest?"),
        ("assistant", "two"),
    ]


async def test_what_is_no_grade_counts_as_the_lowest_and_is_logged(
    composed: Compose, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.chats["judge"] = Scripted(["Grade: 11", "I would say Grade: 10, perhaps.", "Grade: 1"])
    with caplog.at_level(logging.WARNING):
        reply, streamed = await told(composed(Scripted(["one", "two", "three"]), JUDGED), asking())
    assert (reply.message.content, streamed.reasoning()) == (
        "three",
        "The best of 3 different answers, graded -, -, 1.",
    )
    assert [("judge" in record.message, "perhaps" in record.message) for record in caplog.records] == [
        (True, False)
    ] * 2


async def test_equal_answers_are_graded_once_and_a_single_one_never(composed: Compose, bench: Bench) -> None:
    judge = bench.chats["judge"] = Scripted(["Grade: 5"])
    reply, streamed = await told(composed(Scripted(["one", "one", "two", "two"]), JUDGED), asking())
    assert (reply.message.content, len(judge.calls)) == ("one", 2)
    reply, streamed = await told(composed(Scripted(["two"]), JUDGED), asking())
    assert (reply.message.content, streamed.reasoning(), len(judge.calls)) == ("two", "", 2)


async def test_samples_that_were_cut_off_are_not_graded(composed: Compose, bench: Bench) -> None:
    judge = bench.chats["judge"] = Scripted(["Grade: 5"])
    reply, _ = await told(composed(Scripted(["1 2 3", "4", "5 6 7"]), JUDGED), asking(max_tokens=2))
    assert (reply.message.content, reply.usage.completion_tokens, len(judge.calls)) == ("4", 5, 0)


async def test_each_choice_is_the_best_of_its_own(composed: Compose, bench: Rewarding) -> None:
    bench.scores = {"a": [1.0], "b": [2.0], "c": [math.nan], "d": [-1.0], "e": [-2.0], "f": [-0.5]}
    reply, streamed = await told(composed(Scripted(list("abcdef")), REWARDED), asking(n=2))
    assert [choice.message.content for choice in reply.choices] == ["b", "f"]
    assert streamed.reasoning(0) == "The best of 3 different answers, graded 1, 2, -."
    assert dict(reply.usage.calls)["best_of_n.reward"] == Usage(7)
    model, path, body = bench.asked[0]
    assert (model, path, body["use_activation"]) == ("reward", "/classify", False)
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant"]


async def test_a_classifier_of_several_classes_is_no_reward_model(composed: Compose, bench: Rewarding) -> None:
    bench.scores = {"a": [0.1, 0.9], "b": [0.5, 0.5]}
    with pytest.raises(EngineError, match="no reward model"):
        await told(composed(Scripted(["a", "b", "a"]), REWARDED), asking())


async def test_calls_of_tools_are_graded_as_text(composed: Compose, bench: Bench) -> None:
    function = {"name": "f", "arguments": "{}"}

    async def chat(request: ChatRequest, emit: Emit) -> Reply:
        call = {"id": "1", "type": "function", "function": function}
        one = Reply(Message(role="assistant", tool_calls=[call]), "tool_calls").choices
        return Reply.of([*one, *Reply(Message(role="assistant", content="No.")).choices, *one])

    judge = bench.chats["judge"] = Scripted(["Grade: 8", "Grade: 2"])
    reply, streamed = await told(composed(chat, JUDGED), asking(tools=[{"type": "function"}]))
    assert reply.finish_reason == "tool_calls"
    assert judge.calls[0].messages[-2].content == '[{"name": "f", "arguments": "{}"}]'
    assert any(delta.tool_calls for delta in streamed.deltas)


async def test_a_spent_budget_leaves_the_samples(composed: Compose, bench: Bench) -> None:
    graded = Scripted(["Grade: 2"])

    async def judge(request: ChatRequest, emit: Emit) -> Reply:
        if graded.calls:
            raise BudgetSpent("all tokens are used")
        return await graded(request, emit)

    bench.chats["judge"] = judge
    reply, _ = await told(composed(Scripted(["one", "two", "three"]), JUDGED), asking())
    assert reply.message.content == "one"


async def test_cancelling_ends_the_judges(composed: Compose, bench: Bench) -> None:
    judge = bench.chats["judge"] = Scripted(["Grade: 2"], pace_s=10)
    running = asyncio.ensure_future(composed(Scripted(["one", "two", "three"]), JUDGED)(asking(), silent))
    while len(judge.calls) < 3:
        await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (judge.running, judge.cancelled) == (0, 3)


@pytest.mark.parametrize(
    "request_",
    [
        asking(logprobs=True),
        asking(continue_final_message=True),
        ChatRequest.completing("Once", model="m"),
    ],
)
async def test_what_cannot_be_judged_is_refused(composed: Compose, bench: Bench, request_: ChatRequest) -> None:
    bench.chats["judge"] = Scripted()
    with pytest.raises(BadRequest, match="best_of_n"):
        await told(composed(Scripted(), JUDGED), request_)


def test_one_of_them_grades() -> None:
    with pytest.raises(ValidationError, match="either judge"):
        BestOfN()
    with pytest.raises(ValidationError, match="either judge"):
        BestOfN(judge=Judge(model="a"), reward=Reward(model="b"))
