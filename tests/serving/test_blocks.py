"""Streams in blocks are well-formed whatever the deltas are, and tell all of them."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reading import AnthropicReading, ResponsesReading
from penstock.chat import Delta, Message, Reply
from penstock.errors import StreamInterrupted
from serving.messages_shape import MessagesShape
from serving.responses_shape import ResponsesShape
from tests.serving.telling import CALLED, reply_of

words = st.text(max_size=4)
calls = st.lists(st.lists(words, max_size=3), max_size=2)


def calling(arguments: list[list[str]]) -> list[Delta]:
    """Calls as an engine streams them: the name first, then pieces of the arguments."""
    return [
        Delta(tool_calls=[{"index": index, **({"id": f"c{index}"} if not number else {}), "function": function}])
        for index, pieces in enumerate(arguments)
        for number, piece in enumerate(["", *pieces])
        for function in [{"arguments": piece} if number else {"name": "get", "arguments": ""}]
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.builds(Delta, words, words), max_size=6), calls, st.sampled_from(["stop", "length"]))
def test_every_stream_is_read_to_its_end_and_tells_the_whole_answer(
    said: list[Delta], arguments: list[list[str]], why: str
) -> None:
    deltas = [*said, *calling(arguments)]
    reply = reply_of(deltas, why)  # type: ignore[arg-type]
    for shape, reading in (
        (ResponsesShape("r", "m", {}), ResponsesReading()),
        (MessagesShape("r", "m", shows_thinking=True), AnthropicReading()),
    ):
        stream = b"".join([shape.first(), *map(shape.piece, deltas), shape.last(reply)])
        assert reading.feed(stream) == stream
        assert reading.failure is None
        assert reading.over
        assert "".join(reading.text) == (reply.message.content or "")
        told = {
            kind: "".join(block.text for block in shape.told if block.kind == kind) for kind in ("reasoning", "call")
        }
        assert told["reasoning"] == "".join(delta.reasoning for delta in said)
        assert told["call"] == "".join("".join(pieces) for pieces in arguments)
        assert [block.number for block in shape.told] == [*range(len(shape.told))]


def test_what_never_streamed_is_told_at_the_end() -> None:
    reply = reply_of([Delta("Yes.", "Hm."), *CALLED], "tool_calls")
    for shape in (ResponsesShape("r", "m", {}), MessagesShape("r", "m", shows_thinking=True)):
        stream = shape.first() + shape.last(reply)
        assert [block.kind for block in shape.told] == ["reasoning", "text", "call", "call"]
        assert all(text in stream for text in (b"Yes.", b"Hm.", b"call_b", b"Oslo"))


def test_a_refusal_has_words_in_both() -> None:
    reply = Reply(Message(role="assistant", refusal="I will not."))
    responses, messages = ResponsesShape("r", "m", {}), MessagesShape("r", "m")
    assert responses.whole(reply)["output"][0]["content"] == [{"type": "refusal", "refusal": "I will not."}]
    assert messages.whole(reply)["content"] == [{"type": "text", "text": "I will not."}]
    assert b"response.refusal.done" in responses.first() + responses.last(reply)


def test_a_call_that_has_ended_cannot_go_on() -> None:
    shape = MessagesShape("r", "m")
    for delta in CALLED:
        shape.piece(delta)
    with pytest.raises(StreamInterrupted):
        shape.piece(Delta(tool_calls=[{"index": 0, "function": {"arguments": "}"}}]))


def test_a_cut_call_has_an_empty_input_and_its_pieces_as_they_came() -> None:
    delta = Delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "get", "arguments": '{"ci'}}])
    whole = MessagesShape("r", "m").whole(reply_of([delta], "length"))
    assert (whole["stop_reason"], whole["content"][0]["input"]) == ("max_tokens", {})
    response = ResponsesShape("r", "m", {}).whole(reply_of([delta], "length"))
    assert (response["output"][0]["arguments"], response["output"][0]["status"]) == ('{"ci', "incomplete")
    assert orjson.dumps(response)
