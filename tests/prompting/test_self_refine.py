"""Draft, critique, revision."""

import pytest

from engine.scripted import Scripted
from penstock.chat import ChatRequest, Delta, Emit, FinishReason, Message, Reply, Usage
from prompting.self_refine import REVISE, SelfRefine
from tests.prompting.conftest import Bench, Compose, asking, told

pytestmark = pytest.mark.anyio
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"river": "Nile"}'}}


async def test_what_was_said_before_stays_in_the_conversation(composed: Compose) -> None:
    engine = Scripted(["The Rhine.", "Wrong.", "The Volga.", "Still wrong.", "The Nile."])
    reply, streamed = await told(composed(engine, SelfRefine(rounds=2, critique="What is wrong?")), asking())
    assert reply.message.content == streamed.content() == "The Nile."
    assert [turn.text for turn in engine.calls[-1].messages[1:]] == [
        *("The Rhine.", "What is wrong?", "Wrong.", REVISE),
        *("The Volga.", "What is wrong?", "Still wrong.", REVISE),
    ]
    assert streamed.reasoning() == "The Rhine.\n\nWrong.\n\nThe Volga.\n\nStill wrong."


async def test_a_critique_that_is_content_makes_the_draft_the_answer(composed: Compose) -> None:
    engine = Scripted(["The Nile.", "Nothing To Mend."])
    step = SelfRefine(rounds=4, stop_when="nothing to mend")
    reply, streamed = await told(composed(engine, step), asking())
    assert len(engine.calls) == 2
    assert engine.calls[1].messages[-1].text.endswith("write only: nothing to mend")
    assert reply.message.content == streamed.content() == "The Nile."
    assert reply.usage.calls[0][0] == "self_refine.critique"
    assert reply.usage.less(reply.usage.calls[0][1]) == Usage(4, 2)  # the draft is the answer


async def test_another_model_criticizes(composed: Compose, bench: Bench) -> None:
    engine, judge = Scripted(["The Rhine.", "The Nile."]), Scripted(["Longer ones exist."])
    bench.chats["judge"] = judge
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    reply, _ = await told(composed(engine, SelfRefine(judge="judge", max_tokens=50)), asking(tools=tools))
    assert reply.message.content == "The Nile."
    (call,) = judge.calls
    assert (call.model, call.messages[-2].text) == ("judge", "The Rhine.")
    assert call.to_wire().keys() == {"model", "messages", "max_tokens"}
    assert engine.calls[1].messages[-2].text == "Longer ones exist."
    assert [call.model for call in engine.calls] == ["m", "m"]


@pytest.mark.parametrize("show", [True, False])
@pytest.mark.parametrize(
    ("message", "finish_reason"),
    [
        (Message(role="assistant", content="I look.", tool_calls=[CALL]), "tool_calls"),
        (Message(role="assistant", content="I cannot say"), "content_filter"),
    ],
)
async def test_a_draft_that_calls_a_tool_or_is_blocked_goes_out_as_it_is(
    composed: Compose, message: Message, finish_reason: FinishReason, show: bool
) -> None:
    calls = []

    async def engine(request: ChatRequest, emit: Emit) -> Reply:
        calls.append(request)
        await emit(Delta(content=message.text))
        return Reply(message, finish_reason, Usage(3, 2))

    reply, streamed = await told(composed(engine, SelfRefine(show=show)), asking())
    assert len(calls) == 1
    assert (reply.message.content, reply.finish_reason) == (message.content, finish_reason)
    assert reply.message.tool_calls == message.tool_calls
    assert streamed.content() == message.content
    sent = [call for delta in streamed.deltas for call in delta.tool_calls]
    assert sent == [{"index": index, **call} for index, call in enumerate(message.tool_calls or [])]
    assert reply.usage == Usage(3, 2)
