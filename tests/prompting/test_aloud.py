"""What is thought aloud."""

from dataclasses import replace

import pytest

from engine.scripted import Scripted
from penstock.chat import Delta, Message, Reply, Usage
from prompting.aloud import Aloud
from tests.prompting.conftest import Streamed, asking

pytestmark = pytest.mark.anyio


async def test_calls_are_paragraphs_of_the_reasoning_and_the_message_has_it_too() -> None:
    streamed = Streamed()
    aloud = Aloud(streamed, show=True)
    first = await aloud.ask(Scripted(["Is it so?"]), asking("a"), "doubt")
    await aloud.tell("It is not.")
    await aloud.answer(Delta(reasoning="Well."))
    await aloud.answer(Delta(reasoning=" So"))
    await aloud.answer(Delta(content="No."))
    reply = aloud.whole(Reply(Message(role="assistant", content="No.", reasoning="Well. So")))
    assert first.usage.calls == (("doubt", Usage(1, 3)),)
    assert streamed.reasoning() == "Is it so?\n\nIt is not.\n\nWell. So"
    assert reply.message.model_dump()["reasoning"] == streamed.reasoning()


async def test_a_models_own_reasoning_and_what_it_then_says_are_two_paragraphs() -> None:
    streamed = Streamed()
    think = Aloud(streamed, show=True).thinking()
    for delta in (Delta(reasoning="Hm"), Delta(reasoning="."), Delta(content="So"), Delta(content=".")):
        await think(delta)
    assert streamed.reasoning() == "Hm.\n\nSo."


@pytest.mark.parametrize("show", [True, False])
async def test_a_draft_is_given_whole(show: bool) -> None:
    streamed = Streamed()
    aloud = Aloud(streamed, show=show)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    draft = Reply(
        Message(role="assistant", content="See.", reasoning="Hm.", tool_calls=[call]),
        "tool_calls",
        logprobs={"content": []},
    )
    await aloud.thinking()(Delta(reasoning="Hm."))
    await aloud.thinking()(Delta(content="See."))
    given = await aloud.give(draft)
    assert (streamed.content(), streamed.deltas[-1].logprobs) == ("See.", {"content": []})
    assert streamed.deltas[-1].tool_calls == [{"index": 0, **call}]
    assert given.message.tool_calls == [call]
    assert given.message.model_dump()["reasoning"] == streamed.reasoning() == ("Hm.\n\nSee." if show else "Hm.")
    assert replace(given, message=draft.message) == draft
