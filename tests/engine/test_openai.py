"""Any OpenAI-compatible server as a Chat."""

import json
from typing import Any

import pytest

from engine.openai import OpenAIChat
from engine.pool import Pool
from engine.replica import Replica
from penstock.chat import ChatRequest, Delta, Message, Reply, Usage
from penstock.errors import BadRequest, EngineError, EngineUnavailable, PenstockError, StreamInterrupted
from tests.upstream import Say, answers, streams, upstream

pytestmark = pytest.mark.anyio

DONE = b"data: [DONE]\n\n"


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


async def ask(say: Say, **fields: Any) -> tuple[Reply, list[Delta], dict[str, Any]]:
    deltas: list[Delta] = []

    async def emit(delta: Delta) -> None:
        deltas.append(delta)

    request = ChatRequest(model="m", messages=[Message(role="user", content="hi")], **fields)
    async with upstream(say) as server:
        replica = Replica.at("r", server.url)
        replica.set_ready(True)
        try:
            reply = await OpenAIChat(Pool("e", [replica], 0))(request, emit)
        finally:
            replica.close()
        return reply, deltas, json.loads(server.bodies[0])


async def test_the_stream_is_emitted_as_it_comes_and_returned_whole() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    tail = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
    said = streams(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "a"}),
        chunk({"content": "b"}, "stop"),
        tail,
        DONE,
    )
    reply, deltas, sent = await ask(said, top_k=5)
    assert [delta.content for delta in deltas] == ["a", "b"]
    assert (reply.message.text, reply.finish_reason, reply.usage) == ("ab", "stop", Usage(3, 2, 1))
    assert sent["top_k"] == 5
    assert sent["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("says", "stopped_by", "untold"),
    [
        ({"stop_reason": None}, None, False),
        ({"stop_reason": "x"}, "x", False),
        ({"stop_reason": 7}, None, False),
        ({"matched_stop": "x"}, "x", False),
        ({"matched_stop": 7}, None, False),
        ({}, None, True),
    ],
)
async def test_what_has_ended_an_answer_is_told_where_the_engine_tells_it(
    says: dict[str, Any], stopped_by: str | None, untold: bool
) -> None:
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop", **says}
    reply, _, _ = await ask(streams(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n", DONE), stop="x")
    assert (reply.stopped_by, reply.stop_untold) == (stopped_by, untold)
    assert reply.choices[0].stop_untold is untold


async def test_tool_calls_are_put_together_from_their_pieces() -> None:
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    pieces = [{"index": 0, "function": {"arguments": part}} for part in ('{"a"', ": 1}")]
    said = [chunk({"tool_calls": [call]}) for call in (first, *pieces)]
    reply, deltas, _ = await ask(streams(*said, chunk({}, "tool_calls"), DONE))
    assert reply.finish_reason == "tool_calls"
    assert reply.message.tool_calls == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    ]
    assert len(deltas) == 3


@pytest.mark.parametrize(
    ("say", "kind"),
    [
        (streams(chunk({"content": "a"}), cut=True), StreamInterrupted),
        (streams(chunk({"content": "a"})), StreamInterrupted),
        (streams(chunk({"content": "a"}), DONE), StreamInterrupted),
        (streams(b'data: {"error": {"message": "dead", "code": 500}}\n\n', DONE), EngineError),
        (streams(b"data: {oops\n\n"), EngineError),
        (streams(b"data: 5\n\n"), EngineError),
        (answers(400, b'{"error": {"message": "no"}}'), BadRequest),
        (answers(503, b""), EngineUnavailable),
    ],
)
async def test_what_goes_wrong_is_raised_and_never_a_short_answer(say: Say, kind: type[PenstockError]) -> None:
    with pytest.raises(kind):
        await ask(say)


async def test_several_choices_come_each_by_its_index() -> None:
    def of(index: int, text: str, finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
        return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"

    reply, deltas, sent = await ask(streams(of(1, "b"), of(0, "a", "stop"), of(1, "c", "length"), DONE), n=2)
    assert [(choice.message.text, choice.finish_reason) for choice in reply.choices] == [
        ("a", "stop"),
        ("bc", "length"),
    ]
    assert [(delta.choice, delta.content) for delta in deltas] == [(1, "b"), (0, "a"), (1, "c")]
    assert sent["n"] == 2


async def test_a_plain_prompt_is_gone_on_with_as_it_stands() -> None:
    def text(piece: str, finish: str | None = None) -> bytes:
        choice = {"index": 0, "text": piece, "finish_reason": finish, "logprobs": {"tokens": [piece]}}
        return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"

    async with upstream(streams(text(" upon"), text(" a time", "length"), DONE)) as server:
        replica = Replica.at("r", server.url)
        replica.set_ready(True)
        request = ChatRequest.completing("Once", model="m", logprobs=1)
        reply = await OpenAIChat(Pool("e", [replica], 0))(request, _ignored)
        replica.close()
    sent = json.loads(server.bodies[0])
    assert b"POST /v1/completions " in server.heads[0]
    assert (sent["prompt"], "messages" in sent) == ("Once", False)
    assert reply.message.text == " upon a time"
    assert reply.logprobs == {"tokens": [" upon", " a time"]}


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    replica = Replica.at("r", "unix:/nonexistent.sock")
    replica.set_ready(True)
    request = ChatRequest(model="m", messages=[Message(role="user", content="hi")])
    with pytest.raises(EngineUnavailable):
        await OpenAIChat(Pool("e", [replica], 0))(request, _ignored)
    replica.close()


async def _ignored(delta: Delta) -> None: ...
