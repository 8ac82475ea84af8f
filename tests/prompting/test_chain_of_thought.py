"""Chain of thought."""

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from engine.scripted import Scripted
from penstock.chat import Chat, ChatRequest, Choice, Delta, Emit, Message, Reply, Usage, silent
from penstock.errors import BadRequest, BudgetSpent
from prompting.chain_of_thought import ChainOfThought
from tests.prompting.conftest import Compose, asking, told

pytestmark = pytest.mark.anyio

TOOL = {"type": "function", "function": {"name": "length", "parameters": {"type": "object"}}}


async def test_the_reasoning_goes_out_as_reasoning_and_the_answer_as_content(composed: Compose) -> None:
    engine = Scripted(["The Nile has 6650 km. Answer: the Nile"])
    reply, streamed = await told(composed(engine, ChainOfThought()), asking())
    assert (reply.message.content, streamed.content()) == ("the Nile", "the Nile")
    assert getattr(reply.message, "reasoning", None) == streamed.reasoning() == "The Nile has 6650 km. "
    assert len(streamed.deltas) > 5  # as it comes
    assert [turn.role for turn in engine.calls[0].messages] == ["system", "user"]
    assert "Answer:" in engine.calls[0].messages[0].text
    assert reply.usage.calls == ()


async def test_it_can_stay_untold(composed: Compose) -> None:
    reply, streamed = await told(composed(Scripted(["Long. Answer: 7"]), ChainOfThought(show=False)), asking())
    assert (streamed.content(), streamed.reasoning(), hasattr(reply.message, "reasoning")) == ("7", "", False)


async def test_without_the_marker_the_answer_is_asked_for(composed: Compose) -> None:
    engine = Scripted(["It is the Nile.", "Answer: The Nile"])
    reply, streamed = await told(composed(engine, ChainOfThought()), asking())
    assert (reply.message.content, streamed.content(), streamed.reasoning()) == (
        "The Nile",
        "The Nile",
        "It is the Nile.",
    )
    first, second = engine.calls
    assert second.messages[: len(first.messages)] == first.messages
    assert [turn.text for turn in second.messages[-2:]] == ["It is the Nile.", "Now give the final answer alone."]
    assert [name for name, _ in reply.usage.calls] == ["chain_of_thought"]
    assert reply.usage.completion_tokens == 4 + 3


async def test_without_the_marker_everything_may_be_the_answer(composed: Compose) -> None:
    engine = Scripted(["It is the Nile."])
    reply, streamed = await told(composed(engine, ChainOfThought(unmarked="answer")), asking())
    assert reply.message.content == streamed.content() == "It is the Nile."
    assert len(engine.calls) == 1


async def test_a_spent_budget_leaves_what_has_been_said(composed: Compose) -> None:
    engine = Scripted(["It is the Nile."])

    async def once(request: ChatRequest, emit: Emit) -> Reply:
        if engine.calls:
            raise BudgetSpent("all tokens are used")
        return await engine(request, emit)

    reply, streamed = await told(composed(once, ChainOfThought()), asking())
    assert reply.message.content == streamed.content() == "It is the Nile."
    engine.calls.clear()
    reply, streamed = await told(composed(once, ChainOfThought()), asking(max_tokens=9))
    assert (reply.message.content, reply.finish_reason, streamed.content()) == ("", "length", "")
    assert getattr(reply.message, "reasoning", "") == "It is the Nile."


@pytest.mark.parametrize(
    "binding",
    [
        {"max_tokens": 2},
        {"stop": ["."]},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"choice": ["a", "b"]}},
        {"tools": [TOOL], "tool_choice": "required"},
        {"logprobs": True},
    ],
)
async def test_what_binds_the_answer_does_not_bind_the_thoughts(composed: Compose, binding: dict[str, Any]) -> None:
    engine = Scripted(["Rivers, long ones.", '{"a": 1} and more'])
    reply, streamed = await told(composed(engine, ChainOfThought(max_tokens=50)), asking(**binding))
    thoughts, answer = (call.to_wire() for call in engine.calls)
    assert (thoughts["max_tokens"], thoughts["stop"]) == (50, ["Answer:"])
    assert not {"response_format", "structured_outputs", "logprobs"} & thoughts.keys()
    assert {name: answer[name] for name in binding} == binding
    assert thoughts.get("tools") == answer.get("tools")  # they are part of the prompt that both begin with
    assert thoughts.get("tool_choice") in (None, "none")
    assert answer["messages"][: len(thoughts["messages"])] == thoughts["messages"]
    assert streamed.reasoning() == "Rivers, long ones."
    assert (
        reply.message.content == streamed.content() == ('{"a": 1}' if "max_tokens" in binding else '{"a": 1} and more')
    )


async def test_a_call_of_a_tool_passes(composed: Compose) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "length", "arguments": "{}"}}

    async def calls(request: ChatRequest, emit: Emit) -> Reply:
        await emit(Delta(content="I look it up. An"))
        await emit(Delta(tool_calls=[{**call, "index": 0}]))
        return Reply(Message(role="assistant", content="I look it up. An", tool_calls=[call]), "tool_calls")

    reply, streamed = await told(composed(calls, ChainOfThought()), asking(tools=[TOOL]))
    assert (reply.message.content, reply.message.tool_calls, reply.finish_reason) == (None, [call], "tool_calls")
    assert (streamed.content(), streamed.reasoning()) == ("", "I look it up. An")
    assert [delta.tool_calls for delta in streamed.deltas if delta.tool_calls] == [[{**call, "index": 0}]]


async def test_a_model_that_reasons_by_itself_is_not_cut_again(composed: Compose) -> None:
    async def reasons(request: ChatRequest, emit: Emit) -> Reply:
        await emit(Delta(reasoning="Hm. Answer: maybe."))
        await emit(Delta(content="The Nile"))
        return Reply(Message(role="assistant", content="The Nile", reasoning="Hm. Answer: maybe."))

    reply, streamed = await told(composed(reasons, ChainOfThought()), asking())
    assert (reply.message.content, streamed.content()) == ("The Nile", "The Nile")
    assert getattr(reply.message, "reasoning", "") == streamed.reasoning() == "Hm. Answer: maybe."


async def test_several_choices_are_one_request_and_each_is_cut(composed: Compose) -> None:
    engine = Scripted(["Long. Answer: 1", "no marker", "Hm. Answer: 3", "2"])
    reply, streamed = await told(composed(engine, ChainOfThought()), asking(n=3))
    assert [choice.message.content for choice in reply.choices] == ["1", "2", "3"]
    assert [streamed.content(index) for index in range(3)] == ["1", "2", "3"]
    assert [getattr(call, "n", 1) for call in engine.calls] == [3, 1]


async def test_thoughts_of_several_bound_choices_are_one_request(composed: Compose) -> None:
    engine = Scripted(["first", "second", "1", "2"])
    reply, streamed = await told(composed(engine, ChainOfThought()), asking(n=2, max_tokens=9))
    assert [getattr(call, "n", 1) for call in engine.calls] == [2, 1, 1]
    assert sorted(call.messages[-2].text for call in list(engine.calls)[1:]) == ["first", "second"]
    assert sorted(choice.message.text for choice in reply.choices) == ["1", "2"]
    assert [streamed.reasoning(index) for index in range(2)] == ["first", "second"]
    assert reply.usage.completion_tokens == 4


async def test_cancelling_leaves_nothing_running(composed: Compose) -> None:
    thoughts, answers = Scripted(["a", "b"]), Scripted(["and so on"], pace_s=10)

    async def slow_at_last(request: ChatRequest, emit: Emit) -> Reply:
        return await (answers if thoughts.calls else thoughts)(request, emit)

    chat = composed(slow_at_last, ChainOfThought())
    running = asyncio.ensure_future(chat(asking(n=2, max_tokens=5), silent))
    while len(answers.calls) < 2:
        await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (answers.running, answers.cancelled) == (0, 2)


async def test_what_cannot_be_answered_so_is_refused(composed: Compose) -> None:
    chat: Chat = composed(Scripted(), ChainOfThought())
    with pytest.raises(BadRequest, match="chain_of_thought"):
        await told(chat, ChatRequest.completing("Once", model="m"))
    with pytest.raises(BadRequest, match="begun"):
        await told(chat, asking(continue_final_message=True))
    with pytest.raises(ValidationError):
        ChainOfThought(marker="")


async def test_a_cut_first_call_is_told_as_it_is(composed: Compose) -> None:
    async def cut(request: ChatRequest, emit: Emit) -> Reply:
        await emit(Delta(content="Rivers"))
        return Reply.of([Choice(Message(role="assistant", content="Rivers"), "length")], Usage(1, 1))

    reply, streamed = await told(composed(cut, ChainOfThought()), asking())
    assert (reply.message.content, reply.finish_reason, streamed.content()) == ("Rivers", "length", "Rivers")
