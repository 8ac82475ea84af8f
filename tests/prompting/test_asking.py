"""What the strategies share."""

import pytest

from engine.scripted import Scripted
from penstock.chat import ChatRequest, Emit, Message, Reply, Usage
from penstock.errors import PenstockError
from prompting.asking import aside, ask, each_choice, to_judge
from tests.prompting.conftest import asking, told

pytestmark = pytest.mark.anyio


async def test_each_choice_is_asked_for_and_streams_by_itself() -> None:
    engine = Scripted(["one", "two", "three"])

    async def chat(request: ChatRequest, emit: Emit) -> Reply:
        return await each_choice(request, emit, engine)

    reply, streamed = await told(chat, asking(n=3))
    assert [choice.message.content for choice in reply.choices] == ["one", "two", "three"]
    assert [streamed.content(index) for index in range(3)] == ["one", "two", "three"]
    assert all("n" not in call.to_wire() for call in engine.calls)
    assert reply.usage.completion_tokens == 3


async def test_one_choice_that_fails_ends_the_others() -> None:
    engine = Scripted(["and so on and on"], pace_s=10)

    async def fails_once(request: ChatRequest, emit: Emit) -> Reply:
        if engine.calls:
            raise PenstockError("no")
        return await engine(request, emit)

    async def chat(request: ChatRequest, emit: Emit) -> Reply:
        return await each_choice(request, emit, fails_once)

    with pytest.raises(PenstockError, match="no"):
        await told(chat, asking(n=2))
    assert engine.running == 0
    assert engine.cancelled == 1


async def test_a_call_aside_begins_as_the_request_and_is_bound_by_nothing() -> None:
    request = asking(temperature=0.5, stop=["."], max_tokens=5, n=2, response_format={"type": "text"}, min_tokens=3)
    call = aside(request, [Message(role="user", content="Criticize.")], max_tokens=50)
    assert call.messages[:-1] == request.messages
    assert call.to_wire().keys() == {"model", "messages", "temperature", "max_tokens"}
    assert call.to_wire()["max_tokens"] == 50


async def test_a_call_aside_has_the_tools_in_its_prompt_and_cannot_call_them() -> None:
    request = asking(tools=[{"type": "function"}], tool_choice="required")
    own, judged = aside(request, []).to_wire(), to_judge(request, "judge", []).to_wire()
    assert (own["tools"], own["tool_choice"]) == ([{"type": "function"}], "none")
    assert judged.keys() == {"model", "messages"}
    assert judged["model"] == "judge"


async def test_what_a_call_cost_bears_the_steps_name() -> None:
    reply = await ask(Scripted(["Too long."]), asking("a b"), "critique")
    assert reply.usage == Usage(2, 2, 0, (("critique", Usage(2, 2)),))
    outer = (reply.usage + Usage(1, 1)).of("refine")
    assert outer.calls == (("refine/critique", Usage(2, 2)), ("refine", Usage(1, 1)))
    assert outer.total_tokens == 6
