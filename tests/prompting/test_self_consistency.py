"""Self-consistency."""

import asyncio

import pytest
from pydantic import ValidationError

from engine.scripted import Scripted
from penstock.chat import ChatRequest, Choice, Emit, Message, Reply, Usage, silent
from penstock.errors import BadRequest, EngineError
from prompting.chain_of_thought import ChainOfThought
from prompting.self_consistency import SelfConsistency
from tests.prompting.conftest import Compose, asking, told

pytestmark = pytest.mark.anyio


async def test_most_samples_decide_and_all_are_one_request(composed: Compose) -> None:
    engine = Scripted(["Hm. Answer: 17", "So. Answer: 18", "Then Answer: $18.00"])
    reply, streamed = await told(composed(engine, SelfConsistency(k=3)), asking(max_tokens=9, stop=["x"]))
    assert reply.message.content == streamed.content() == "So. Answer: 18"
    assert streamed.reasoning() == getattr(reply.message, "reasoning", "") == "2 of 3 samples agree."
    (call,) = engine.calls
    assert call.to_wire() == {
        **asking(max_tokens=9, stop=["x"]).to_wire(),
        "n": 3,
        "temperature": 0.7,
    }
    assert reply.usage.calls == (("self_consistency", Usage(4, 9)),)


async def test_of_equally_many_the_first_wins(composed: Compose) -> None:
    reply, _ = await told(composed(Scripted(["1", "2", "2", "1"]), SelfConsistency(k=4)), asking())
    assert reply.message.content == "1"


async def test_each_choice_has_samples_of_its_own(composed: Compose) -> None:
    engine = Scripted(["1", "2", "2", "3", "3", "4"])
    reply, streamed = await told(composed(engine, SelfConsistency(k=3, show=False)), asking(n=2))
    assert [choice.message.content for choice in reply.choices] == ["2", "3"]
    assert [streamed.content(index) for index in range(2)] == ["2", "3"]
    assert streamed.reasoning() == ""
    assert [getattr(call, "n", 1) for call in engine.calls] == [6]


async def test_samples_that_were_cut_off_cost_but_have_no_vote(composed: Compose) -> None:
    engine = Scripted(["1 2 3", "1 2 3", "4"])
    reply, _ = await told(composed(engine, SelfConsistency(k=3)), asking(max_tokens=2))
    assert (reply.message.content, reply.usage.completion_tokens) == ("4", 5)
    reply, _ = await told(composed(Scripted(["1 2 3", "4 5 6", "4 5 7"]), SelfConsistency(k=3)), asking(max_tokens=2))
    assert (reply.message.content, reply.finish_reason) == ("4 5", "length")


async def test_json_is_compared_as_json(composed: Compose) -> None:
    engine = Scripted(['{"a":2}', '{"a": 1, "b": 2}', '{"b": 2.0, "a": 1}'])
    request = asking(response_format={"type": "json_object"})
    reply, _ = await told(composed(engine, SelfConsistency(k=3)), request)
    assert reply.message.content == '{"a": 1, "b": 2}'
    assert engine.calls[0].to_wire()["response_format"] == {"type": "json_object"}


async def test_calls_of_tools_are_voted_on(composed: Compose) -> None:
    def calls(id_: str, arguments: str) -> Choice:
        call = {"id": id_, "type": "function", "function": {"name": "f", "arguments": arguments}}
        return Choice(Message(role="assistant", tool_calls=[call]), "tool_calls")

    async def chat(request: ChatRequest, emit: Emit) -> Reply:
        said = Choice(Message(role="assistant", content="I do not know."))
        return Reply.of([said, calls("a", '{"x": 1, "y": 2}'), calls("b", '{"y": 2, "x": 1}')])

    reply, streamed = await told(composed(chat, SelfConsistency(k=3)), asking(tools=[{"type": "function"}]))
    assert reply.finish_reason == "tool_calls"
    assert reply.message.tool_calls is not None
    assert reply.message.tool_calls[0]["id"] == "a"
    assert reply.message.content is None
    assert [delta.tool_calls for delta in streamed.deltas if delta.tool_calls] == [
        [{**reply.message.tool_calls[0], "index": 0}]
    ]


async def test_chains_of_thought_are_samples_of_one_request(composed: Compose) -> None:
    engine = Scripted(["Hm. Answer: 17", "So. Answer: 18", "Then. Answer: 18"])
    reply, streamed = await told(composed(engine, SelfConsistency(k=3), ChainOfThought()), asking())
    assert reply.message.content == streamed.content() == "18"
    assert streamed.reasoning() == "So. \n\n2 of 3 samples agree."
    assert [getattr(call, "n", 1) for call in engine.calls] == [3]


async def test_a_plain_prompt_is_sampled_as_it_is(composed: Compose) -> None:
    engine = Scripted(["1", "2", "2"])
    request = ChatRequest.completing("Once", model="m")
    reply, _ = await told(composed(engine, SelfConsistency(k=3)), request)
    assert (reply.message.content, engine.calls[0].is_plain) == ("2", True)


async def test_cancelling_ends_the_samples(composed: Compose) -> None:
    engine = Scripted(["and so on"], pace_s=10)
    running = asyncio.ensure_future(composed(engine, SelfConsistency())(asking(), silent))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (engine.running, engine.cancelled) == (0, 1)


async def test_logprobs_are_refused(composed: Compose) -> None:
    with pytest.raises(BadRequest, match="self_consistency"):
        await told(composed(Scripted(), SelfConsistency()), asking(logprobs=True))


async def test_an_engine_that_gives_fewer_samples_is_an_error(composed: Compose) -> None:
    async def one(request: ChatRequest, emit: Emit) -> Reply:
        return Reply(Message(role="assistant", content="1"))

    with pytest.raises(EngineError, match="5 samples"):
        await told(composed(one, SelfConsistency()), asking())


def test_a_wrong_expression_is_told() -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        SelfConsistency(regex="(")
