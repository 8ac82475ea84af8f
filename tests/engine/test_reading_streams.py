"""What of an engine's stream is passed on, however its bytes are cut."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.reading import CHAT, DONE_EVENT, MESSAGES, RESPONSES, OpenAIReading, Reading, reading_of
from engine.whole import check_whole
from penstock.errors import BadRequest, EngineError, StreamInterrupted


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


def chunk(delta: Any, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    return event({"id": "x", "choices": [{"index": index, "delta": delta, "finish_reason": finish}], **more})


ROLE = chunk({"role": "assistant", "content": ""})
WHOLE = [ROLE, chunk({"content": "Grü"}), b": ping\n\n", chunk({"content": "ße 🌊"}), chunk({}, "stop"), DONE_EVENT]


def fed(reading: Reading, pieces: Sequence[bytes]) -> bytes:
    return b"".join(reading.feed(piece) for piece in pieces)


@given(st.lists(st.integers(0, 400), max_size=12))
def test_wherever_a_stream_is_cut_the_same_bytes_go_out(cuts: list[int]) -> None:
    data = b"".join(WHOLE)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in pairwise(places)]
    reading = OpenAIReading(1)
    assert fed(reading, pieces) == data
    assert (reading.over, reading.failure, "".join(reading.text)) == (True, None, "Grüße 🌊")


def as_vllm_writes(text: str, **more: Any) -> bytes:
    return b"data: " + orjson.dumps({"id": "x", "choices": [PIECE | {"delta": {"content": text}}], **more}) + b"\n\n"


PIECE = {"index": 0, "logprobs": None, "finish_reason": None}


@given(st.lists(st.text(st.sampled_from('ab "\\{}\n\x1fé🌊')) | st.text(), min_size=1))
def test_events_told_by_their_likeness_are_read_as_those_that_are_parsed(texts: list[str]) -> None:
    reading = OpenAIReading(1)
    events = [as_vllm_writes("first"), as_vllm_writes("second"), *map(as_vllm_writes, texts)]
    assert fed(reading, events) == b"".join(events)
    assert (reading.failure, "".join(reading.text)) == (None, "firstsecond" + "".join(texts))


@given(st.sampled_from([b'"', b"\\x", b"\n", b"\x00", b"\xff", b'","x":NaN,"y":"', b'"}]}\n\ndata: {"a":["']))
def test_what_is_like_the_last_event_but_no_json_is_not_passed_on(inside: bytes) -> None:
    reading = OpenAIReading(1)
    good = as_vllm_writes("first")
    assert fed(reading, [good, good, good.replace(b"first", b"a" + inside + b"b")]) == good + good
    assert isinstance(reading.failure, StreamInterrupted)


def test_an_event_that_only_seems_to_end_like_the_last_is_read_whole() -> None:
    reading = OpenAIReading(1)
    with_usage = as_vllm_writes("x", usage={"completion_tokens": 3})
    fed(reading, [as_vllm_writes("first"), as_vllm_writes("second"), with_usage])
    assert reading.usage == {"completion_tokens": 3}


@given(st.integers(1, 60))
def test_carriage_returns_and_single_bytes_change_no_text(size: int) -> None:
    data = b"".join(WHOLE).replace(b"\n", b"\r\n")
    reading = OpenAIReading(1)
    out = fed(reading, [data[start : start + size] for start in range(0, len(data), size)])
    assert reading.over
    assert "".join(reading.text) == "Grüße 🌊"
    assert b"\r" not in out


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b'data: {"id": "x", "choices": [{"ind\n\n', "not JSON"),
        (b'data: {"choices": [{"index": 0, "delta": {"content": NaN}}]}\n\n', "not JSON"),
        (b'data: {"choices": [{"index": 0, "delta": {"content": "\xff\xfe"}}]}\n\n', "not JSON"),
        (b"data: [1]\n\n", "no part of an answer"),
        (b'data: {"choices": 5}\n\n', "no part of an answer"),
        (b'data: {"choices": [{"index": 0}]}\n\n', "no part of an answer"),
        (b'data: {"hello": 1}\n\n', "no part of an answer"),
        (DONE_EVENT, "without a finish reason"),
        (chunk({"content": "x"}, "abort"), "gave the answer up"),
        (event({"error": {"message": "EngineCore died", "code": 500}}), "EngineCore died"),
    ],
)
def test_what_is_not_good_is_not_passed_on_nor_anything_after_it(bad: bytes, says: str) -> None:
    for together in (True, False):
        reading = OpenAIReading(1)
        before = chunk({"content": "a"})
        out = fed(reading, [before + bad + DONE_EVENT] if together else [before, bad])
        assert out == before
        assert says in str(reading.failure)
        assert not reading.over


def test_it_begins_with_content_not_with_a_role() -> None:
    reading = OpenAIReading(1)
    reading.feed(ROLE + b": ping\n\n")
    assert not reading.began
    reading.feed(chunk({"tool_calls": [{"index": 0}]}))
    assert reading.began
    assert not reading.only_text


def test_every_choice_must_say_how_it_ended() -> None:
    reading = reading_of(CHAT, {"n": 2})
    reading.feed(chunk({"content": "a"}, "stop", 0) + chunk({"content": "b"}, None, 1) + DONE_EVENT)
    assert isinstance(reading.failure, StreamInterrupted)


def test_a_missing_done_is_added_and_a_null_delta_repaired() -> None:
    reading = OpenAIReading(1)
    out = fed(reading, [chunk({"content": "a"}), chunk(None), chunk({}, "stop")])
    assert b"null" not in out.split(b"\n\n")[1].split(b"finish_reason")[0]
    assert reading.closed() == DONE_EVENT


def test_an_empty_finish_reason_is_none() -> None:
    reading = OpenAIReading(1)
    reading.feed(chunk({"content": "a"}, ""))
    with pytest.raises(StreamInterrupted):
        reading.closed()


def test_a_stream_that_lost_the_usage_it_was_to_tell_is_not_whole() -> None:
    reading = reading_of(CHAT, {"stream_options": {"include_usage": True}})
    reading.feed(chunk({"content": "a"}, "stop"))
    with pytest.raises(StreamInterrupted):
        reading.closed()


def test_what_follows_the_end_is_dropped() -> None:
    reading = OpenAIReading(1)
    good = chunk({"content": "a"}, "stop") + DONE_EVENT
    assert reading.feed(good + chunk({"content": "late"})) == good


def test_families_end_in_their_own_ways() -> None:
    messages = reading_of(MESSAGES, {})
    messages.feed(b'event: message_stop\ndata: {"type": "message_stop"}\n\n')
    assert "stop reason" in str(messages.failure)
    responses = reading_of(RESPONSES, {})
    responses.feed(b'data: {"type": "response.failed", "response": {"error": {"message": "no", "code": 400}}}\n\n')
    assert isinstance(responses.failure, BadRequest | EngineError)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html></html>",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": "a"}, "finish_reason": null}]}',
        b'{"choices": [{"message": {"content": "a"}, "finish_reason": "abort"}]}',
        b'{"choices": [{"message": null, "finish_reason": "stop"}]}',
        b'{"choices": [{"message": {"content": NaN}, "finish_reason": "stop"}]}',
        b'{"error": {"message": "no", "code": 500}}',
    ],
)
def test_a_whole_answer_that_is_none_is_an_error(body: bytes) -> None:
    with pytest.raises(EngineError):
        check_whole(CHAT, body, {})
