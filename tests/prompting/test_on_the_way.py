"""What holds for every strategy that makes calls on the way to the answer."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from engine.scripted import Scripted
from penstock.chat import Chat, ChatRequest, Emit, Reply, Usage, silent
from penstock.errors import BadRequest, BudgetSpent, ContextLengthExceeded, PenstockError
from penstock.steps import Step
from prompting.critique_revise import CritiqueRevise
from prompting.least_to_most import LeastToMost
from prompting.self_refine import SelfRefine
from prompting.tree_of_thoughts import TreeOfThoughts
from tests.prompting.conftest import Compose, asking, told

pytestmark = pytest.mark.anyio

Made = Callable[..., Step]
STRATEGIES: Mapping[str, Made] = {
    "self_refine": lambda **options: SelfRefine(rounds=2, **options),
    "critique_revise": lambda **options: CritiqueRevise(per_request=2, **options),
    "least_to_most": LeastToMost,
    "tree_of_thoughts": TreeOfThoughts,
}
DRAFTING = ("self_refine", "critique_revise")
SAID = "1. Why 7?"
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(params=STRATEGIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def step(name: str) -> Step:
    return STRATEGIES[name]()


class Failing:
    """Answers a few calls, then raises."""

    def __init__(self, error: PenstockError, after: int) -> None:
        self.engine = Scripted([SAID])
        self.error = error
        self.after = after

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply:
        if len(self.engine.calls) == self.after:
            raise self.error
        return await self.engine(request, emit)


def summed(chat: Chat) -> tuple[Chat, list[Usage]]:
    used: list[Usage] = []

    async def counted(request: ChatRequest, emit: Emit) -> Reply:
        reply = await chat(request, emit)
        used.append(reply.usage)
        return reply

    return counted, used


async def test_every_call_begins_with_the_requests_own_turns(composed: Compose, step: Step) -> None:
    engine = Scripted([SAID])
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?", "name": "Ada"}]
    await told(composed(engine, step), asking(messages=turns))
    assert len(engine.calls) > 2
    for call in engine.calls:
        assert call.to_wire()["messages"][:2] == turns
        roles = [turn.role for turn in call.messages[1:]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]


async def test_what_binds_the_answer_binds_every_pass_that_may_be_it(composed: Compose, step: Step, name: str) -> None:
    engine = Scripted([SAID])
    bound: dict[str, Any] = {"response_format": {"type": "json_object"}, "stop": ["!"], "max_tokens": 9, "seed": 3}
    await told(composed(engine, step), asking(**bound, tools=[TOOL], tool_choice="auto"))
    fields = [{key: value for key, value in call.to_wire().items() if key in bound} for call in engine.calls]
    answers = [bound == one for one in fields]
    assert answers[-1]
    assert answers == [name in DRAFTING and index % 2 == 0 for index in range(len(answers) - 1)] + [True]
    for call, is_answer in zip(engine.calls, answers, strict=True):
        wire = call.to_wire()
        assert wire["tools"] == [TOOL]
        assert wire["tool_choice"] == ("auto" if is_answer else "none")
        assert is_answer or ("response_format" not in wire and "stop" not in wire and wire["max_tokens"] > 9)


async def test_the_answer_streams_as_content_and_what_is_before_it_as_reasoning(composed: Compose, step: Step) -> None:
    reply, streamed = await told(composed(Scripted([SAID]), step), asking())
    assert streamed.content() == reply.message.content == SAID
    assert streamed.reasoning() == reply.message.model_dump()["reasoning"]
    assert SAID in streamed.reasoning()
    content = [bool(delta.content) for delta in streamed.deltas]
    assert content == sorted(content)
    assert sum(content) > 1


async def test_it_may_be_thought_in_silence(composed: Compose, name: str) -> None:
    reply, streamed = await told(composed(Scripted([SAID]), STRATEGIES[name](show=False)), asking())
    assert streamed.content() == SAID
    assert streamed.reasoning() == ""
    assert "reasoning" not in reply.message.model_dump()


async def test_usage_is_the_sum_of_all_calls_told_by_what_they_were_for(
    composed: Compose, step: Step, name: str
) -> None:
    chat, used = summed(Scripted([SAID]))
    reply, _ = await told(composed(chat, step), asking())
    total = sum(used, Usage())
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (total.prompt_tokens, total.completion_tokens)
    assert len(reply.usage.calls) == len(used) - 1
    assert {call.partition(".")[0] for call, _ in reply.usage.calls} == {name}
    last = reply.usage.less(sum((usage for _, usage in reply.usage.calls), Usage()))
    assert last == used[-1]


async def test_several_choices_are_answered_each_by_itself(composed: Compose, step: Step) -> None:
    chat, used = summed(Scripted([SAID]))
    reply, streamed = await told(composed(chat, step), asking(n=2))
    assert [choice.message.content for choice in reply.choices] == [SAID, SAID]
    assert [streamed.content(index) for index in range(2)] == [SAID, SAID]
    for index, choice in enumerate(reply.choices):
        assert streamed.reasoning(index) == choice.message.model_dump()["reasoning"]
    assert reply.usage.completion_tokens == sum(usage.completion_tokens for usage in used)


async def test_who_leaves_leaves_no_call_behind(composed: Compose, step: Step) -> None:
    before = asyncio.all_tasks()
    for begun in range(1, 5):
        engine = Scripted([SAID])
        task = asyncio.ensure_future(composed(engine, step)(asking(n=2), silent))
        while len(engine.calls) < begun:
            await asyncio.sleep(0)
        engine.pace_s = 100
        await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert (engine.running, asyncio.all_tasks()) == (0, before)


async def test_a_call_that_fails_ends_the_rest(composed: Compose, step: Step) -> None:
    before, chat = asyncio.all_tasks(), Failing(PenstockError("no"), after=3)
    with pytest.raises(PenstockError, match="no"):
        await told(composed(chat, step), asking(n=2))
    assert (chat.engine.running, asyncio.all_tasks()) == (0, before)


@pytest.mark.parametrize("error", [BudgetSpent("no tokens left"), ContextLengthExceeded("too long")])
async def test_a_draft_is_the_answer_where_there_is_no_room_for_another_call(
    composed: Compose, name: str, error: PenstockError
) -> None:
    for after in range(5 if name in DRAFTING else 3):
        step = composed(Failing(error, after), STRATEGIES[name]())
        if name not in DRAFTING or after == 0:
            with pytest.raises(type(error)):
                await told(step, asking())
            continue
        reply, streamed = await told(step, asking())
        assert streamed.content() == reply.message.content == SAID
        assert streamed.reasoning() == reply.message.model_dump()["reasoning"]
        assert streamed.reasoning().endswith(error.message)
        assert reply.usage.completion_tokens == 3 * after


async def test_what_has_begun_to_stream_is_not_begun_again(composed: Compose) -> None:
    for name in DRAFTING:
        engine = Scripted([SAID])

        async def chat(request: ChatRequest, emit: Emit, engine: Scripted = engine) -> Reply:
            reply = await engine(request, emit)
            if len(engine.calls) == 5:
                raise BudgetSpent("no tokens left")
            return reply

        with pytest.raises(BudgetSpent):
            await told(composed(chat, STRATEGIES[name]()), asking())


async def test_they_stand_within_each_other(composed: Compose, step: Step, name: str) -> None:
    chat, used = summed(Scripted([SAID]))
    reply, streamed = await told(composed(chat, SelfRefine(), step), asking())
    assert streamed.content() == SAID
    assert reply.usage.completion_tokens == sum(usage.completion_tokens for usage in used)
    names = {call for call, _ in reply.usage.calls}
    assert {"self_refine.draft", "self_refine.critique"} <= {call.partition("/")[0] for call in names}
    assert any(call.startswith(f"self_refine.draft/{name}.") for call in names)


async def test_what_is_no_conversation_is_refused(composed: Compose, step: Step, name: str) -> None:
    engine = Scripted([SAID])
    with pytest.raises(BadRequest, match=name):
        await told(composed(engine, step), ChatRequest.completing("Once", model="m"))
    begun = asking(continue_final_message=True, add_generation_prompt=False)
    with pytest.raises(BadRequest, match=name):
        await told(composed(engine, step), begun)
    assert not engine.calls
