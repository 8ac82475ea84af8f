"""All that an engine has generated is known, in every family's words; what continuation uses is the text alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest

from engine.asked import Source
from engine.continuation import Joined, Said
from engine.reading import CHAT, MESSAGES, RESPONSES, OpenAIReading, Reading, reading_of
from penstock.errors import StreamInterrupted


def fed(path: str, *documents: Mapping[str, Any], **body: Any) -> Reading:
    reading = reading_of(path, body)
    for document in documents:
        event = b"data: " + orjson.dumps(document) + b"\n\n"
        assert reading.feed(event) == event
    assert reading.failure is None
    return reading


def delta(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def call(number: int = 0, **function: Any) -> dict[str, Any]:
    return delta(tool_calls=[{"index": number, "function": function}])


def test_a_chat_has_reasoning_and_calls_beside_its_text() -> None:
    thoughts = [delta(reasoning="hm"), delta(reasoning_content=" so"), delta(reasoning="!", reasoning_content="!")]
    calls = [call(name="add", arguments=""), call(arguments='{"a":'), call(arguments="1}"), call(arguments={"b": 2})]
    reading = fed(CHAT, delta(role="assistant", content=""), *thoughts, delta(content="Sum:"), *calls)
    assert reading.text == ["Sum:"]
    assert list(reading.texts) == [["Sum:"], ["hm", " so", "!"], ["add", '{"a":', "1}", '{"b":2}']]
    assert isinstance(reading, OpenAIReading)
    assert not reading.only_text


def test_a_refusal_and_a_call_in_the_old_words_are_counted_too() -> None:
    reading = fed(CHAT, delta(refusal="No."), delta(function_call={"name": "f", "arguments": "{}"}))
    assert list(reading.texts) == [[], ["No."], ["f{}"]]


def test_what_each_choice_has_thought_is_kept_apart() -> None:
    said = [delta(0, reasoning="a"), delta(1, reasoning="b"), delta(1, content="c"), delta(0, reasoning="d")]
    assert list(fed(CHAT, *said, n=2).texts) == [[], ["c"], ["a", "d"], ["b"]]


def test_only_text_has_no_list_more() -> None:
    reading = fed(CHAT, delta(role="assistant", content=""), *[delta(content="a", reasoning=None)] * 3)
    assert list(reading.texts) == [["a"] * 3]
    assert reading.beside == {}


def test_what_is_not_passed_on_is_not_counted() -> None:
    reading = fed(CHAT, delta(reasoning="a"))
    for document in (delta(finish="abort", reasoning="b"), delta(content=5, reasoning="b")):
        assert reading.feed(b"data: " + orjson.dumps(document) + b"\n\n") == b""
        assert isinstance(reading.failure, StreamInterrupted)
        assert list(reading.texts) == [[], ["a"]]


def test_a_response_has_reasoning_and_arguments_beside_its_text() -> None:
    reading = fed(
        RESPONSES,
        {"type": "response.created", "response": {}},
        {"type": "response.output_item.added", "item": {"type": "reasoning"}},
        {"type": "response.reasoning_text.delta", "delta": "hm"},
        {"type": "response.reasoning_text.done", "text": "hm"},
        {"type": "response.output_item.added", "item": {"type": "function_call", "name": "add"}},
        {"type": "response.function_call_arguments.delta", "delta": "{}"},
        {"type": "response.function_call_arguments.done", "arguments": "{}"},
        {"type": "response.output_text.delta", "delta": "Sum."},
    )
    assert list(reading.texts) == [["Sum."], ["hm"], ["add", "{}"]]


START = {"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 0}}}
THOUGHT = {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}}
CALL = {"type": "content_block_start", "content_block": {"type": "tool_use", "name": "add", "input": {}}}
ARGUMENTS = {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{}"}}
SIGNED = {"type": "content_block_delta", "delta": {"type": "signature_delta", "signature": "abc"}}
TEXT = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Sum."}}
STOP = {"type": "message_delta", "delta": {"stop_reason": "tool_use"}}


def test_a_message_has_thoughts_and_arguments_beside_its_text() -> None:
    reading = fed(MESSAGES, START, THOUGHT, SIGNED, TEXT, CALL, ARGUMENTS, ARGUMENTS)
    assert list(reading.texts) == [["Sum."], ["hm"], ["add", "{}", "{}"]]


@pytest.mark.parametrize("piece", [THOUGHT, CALL, ARGUMENTS, TEXT])
def test_what_a_message_says_of_its_usage_as_it_starts_is_not_of_the_answer(piece: dict[str, Any]) -> None:
    assert fed(MESSAGES, START).usage == {"input_tokens": 9, "output_tokens": 0}
    assert fed(MESSAGES, START, piece).usage is None
    assert fed(MESSAGES, START, piece, STOP).usage is None
    told = fed(MESSAGES, START, piece, STOP | {"usage": {"output_tokens": 3}}, {"type": "message_stop"})
    assert told.usage == {"input_tokens": 9, "output_tokens": 3}


def test_what_is_no_text_makes_a_stream_of_it_no_worse() -> None:
    reading = fed(MESSAGES, START, {"type": "content_block_delta", "delta": {"text": 5}})
    assert list(reading.texts) == [["5"]]


class Told:
    """A receiver that keeps what was generated."""

    source: Source | None = None
    texts: Sequence[Sequence[str]] = ()

    def begin(self, data: bytes) -> None: ...

    def more(self, data: bytes) -> None: ...

    def end(self, data: bytes) -> None: ...

    def used(self, usage: Mapping[str, Any] | None, texts: Sequence[Sequence[str]]) -> None:
        self.texts = texts


def test_what_was_said_before_a_stream_was_continued_is_counted_once() -> None:
    told = Told()
    Joined(told, Said("The ", {}), 1).used(None, fed(CHAT, delta(content="sum"), delta(reasoning="hm")).texts)
    assert list(told.texts) == [["The ", "sum"], ["hm"]]
