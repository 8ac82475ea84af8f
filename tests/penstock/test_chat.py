"""The nouns keep what they do not know."""

import pytest
from pydantic import ValidationError

from engine.scripted import Scripted
from penstock.chat import ChatRequest, Delta, Message, Usage, silent
from penstock.errors import EngineError


def test_unknown_fields_travel_through_a_request_and_its_messages() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi", "weight": 1}], "top_k": 5, "temperature": None}
    assert ChatRequest.model_validate(body).to_wire() == body


def test_other_messages_leave_the_rest_of_a_request_alone() -> None:
    request = ChatRequest.model_validate({"model": "m", "messages": [], "top_k": 5})
    changed = request.with_messages([Message(role="user", content="x")])
    assert changed.to_wire() == {"model": "m", "messages": [{"role": "user", "content": "x"}], "top_k": 5}
    assert request.messages == []


def test_text_joins_the_text_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]
    assert Message(role="user", content=parts).text == "ab"
    assert Message(role="assistant").text == ""


def test_requests_do_not_change_under_their_readers() -> None:
    with pytest.raises(ValidationError):
        ChatRequest(model="m", messages=[]).model = "n"  # type: ignore[misc]


def test_usage_adds_up() -> None:
    assert Usage(1, 2, 3) + Usage(10, 20, 30) == Usage(11, 22, 33)
    assert Usage(1, 2).total_tokens == 3


@pytest.mark.anyio
async def test_the_scripted_chat_says_what_it_is_told_and_stops_where_it_is_told() -> None:
    said: list[str] = []

    async def emit(delta: Delta) -> None:
        said.append(delta.content)

    ask = ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "two words"}]})
    scripted = Scripted(["first", "then {prompt}"])
    assert (await scripted(ask, silent)).message.text == "first"
    reply = await scripted(ask, emit)
    assert ("".join(said), reply.message.text) == ("then two words", "then two words")
    assert reply.usage == Usage(2, 3)
    cut = await scripted(ask.model_copy(update={"max_tokens": 1}), silent)
    assert (cut.message.text, cut.finish_reason) == ("then", "length")
    with pytest.raises(EngineError):
        await Scripted(["a b c"], failure=EngineError("no"), fail_after=1)(ask, silent)
