"""What of a stream is passed on: whole, well-formed events, and what came in them is known."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.continuation import is_exact
from engine.reading import CHAT, MESSAGES, TEXT, OpenAIReading, reading_of
from penstock.errors import EngineError

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
TURN = {"role": "assistant", "content": "The"}


def chunk(text: Any, finish: Any = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + orjson.dumps({"id": "x", "choices": [choice]}) + b"\n\n"


def read(*pieces: bytes) -> tuple[OpenAIReading, bytes]:
    reading = OpenAIReading(1)
    return reading, b"".join(reading.feed(piece) for piece in pieces)


@pytest.mark.parametrize("finish", ["abort", "error", ["stop"]])
def test_what_the_caller_knows_is_what_was_passed_on(finish: Any) -> None:
    reading, passed = read(chunk("one"), chunk("two", finish))
    assert passed == chunk("one")
    assert reading.text == ["one"]
    assert isinstance(reading.failure, EngineError)


@pytest.mark.parametrize("text", [5, ["a"], {"a": 1}])
def test_content_that_is_no_text_is_no_chunk(text: Any) -> None:
    reading, passed = read(chunk(text))
    assert (passed, reading.text, reading.began) == (b"", [], False)
    assert reading.failure


@pytest.mark.parametrize("end", [b"\r\n", b"\r", b"\n"])
@given(cut=st.integers(0, 200))
def test_line_ends_of_every_kind_become_plain(end: bytes, cut: int) -> None:
    said = chunk("one") + b": comment\n\n" + chunk("two", "stop") + b"data: [DONE]\n\n"
    sent = said.replace(b"\n", end)
    reading, passed = read(sent[:cut], sent[cut:])
    if end == b"\r":  # no engine ends its lines so: it is not understood, and nothing is passed on as if it were
        assert passed == b""
        with pytest.raises(EngineError):
            reading.closed()
    else:
        assert (passed, reading.over) == (said, True)


def test_a_carriage_return_inside_an_event_does_not_end_a_line_of_it() -> None:
    event = b'data: {"id":"x",\rdata: "choices":[{"index":0,"delta":{"content":"a"}}]}\r\n\r\n'
    reading, passed = read(event)
    assert b"\r" not in passed
    assert reading.text == ["a"]


@pytest.mark.parametrize("event", [b": \xff\xfe\n\n", b"\xef\xbb\xbf" + chunk("a"), b"dato: {}\n\n", b"garbage\n\n"])
def test_what_is_no_event_is_not_passed_on(event: bytes) -> None:
    reading, passed = read(event)
    assert passed == b""
    assert reading.failure


def test_names_that_are_no_text_are_not_passed_on() -> None:
    reading = reading_of(MESSAGES, {})
    assert reading.feed(b'event: \xff\ndata: {"type":"ping"}\n\n') == b""
    assert reading.failure


@pytest.mark.parametrize(
    ("path", "body", "exact"),
    [
        (CHAT, ASK, True),
        (CHAT, ASK | {"logprobs": False, "presence_penalty": 0.0, "n": 1}, True),
        (CHAT, ASK | {"seed": 3}, False),
        (CHAT, ASK | {"seed": 3, "temperature": 0}, True),
        (CHAT, ASK | {"add_generation_prompt": False}, False),
        (CHAT, {"messages": [TURN], "continue_final_message": True, "add_generation_prompt": False}, True),
        (CHAT, {"messages": [TURN | {"content": [{"type": "text", "text": "The"}]}], "continue_final_message": True}, False),
        (TEXT, {"prompt": "The", "max_tokens": 9}, True),
        (TEXT, {"prompt": "The", "max_tokens": 9, "logprobs": 0}, False),
        (TEXT, {"prompt": "The"}, False),
        (TEXT, {"prompt": ["The"], "max_tokens": 9}, False),
        (MESSAGES, ASK, False),
    ],
)  # fmt: skip
def test_what_can_be_continued_exactly(path: str, body: dict[str, Any], exact: bool) -> None:
    assert is_exact(path, body) is exact
