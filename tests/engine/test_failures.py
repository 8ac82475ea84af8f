"""Engines' errors in all their shapes become one of ours."""

import pytest

from engine.failures import from_answer, from_document
from penstock.errors import (
    BadRequest,
    ContextLengthExceeded,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    ModelNotFound,
    PenstockError,
    RateLimited,
)

TOO_LONG = b'{"error":{"message":"too long","type":"BadRequestError","param":"input_tokens","code":400}}'


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, TOO_LONG, ContextLengthExceeded, "too long"),
        (400, b'{"error":{"message":"bad grammar","code":400}}', BadRequest, "bad grammar"),
        (404, b'{"error":{"message":"The model `x` does not exist.","code":404}}', ModelNotFound, "does not exist"),
        (401, b'{"error":"Unauthorized"}', EngineRefused, "Unauthorized"),
        (403, b"", EngineRefused, "no reason"),
        (422, b'{"detail":"nope"}', BadRequest, "nope"),
        (400, b'{"object":"error","message":"sglang says no","code":400}', BadRequest, "sglang says no"),
        (429, b"", RateLimited, "no reason"),
        (500, b"<html>", EngineError, "no reason"),
        (503, b"[]", EngineUnavailable, "no reason"),
    ],
)
def test_an_answer_becomes_the_error_that_it_means(
    status: int, body: bytes, kind: type[PenstockError], message: str
) -> None:
    error = from_answer(status, body)
    assert type(error) is kind
    assert message in error.message


def test_retry_after_is_kept_where_it_is_a_number_of_seconds() -> None:
    assert from_answer(503, b"", "7").retry_after_s == 7
    assert from_answer(503, b"", "Wed, 21 Oct 2026 07:28:00 GMT").retry_after_s is None
    assert from_answer(503, b"", "9" * 5000).retry_after_s is None


def test_the_code_in_a_streams_error_event_stands_above_the_status() -> None:
    assert type(from_document(500, {"error": {"message": "x", "code": 400}})) is BadRequest
    assert type(from_document(500, {"error": {"message": "dead", "type": "InternalServerError"}})) is EngineError


def test_no_address_in_the_engines_memory_is_passed_on() -> None:
    said = {"error": {"message": "cannot identify image file <_io.BytesIO object at 0x7f3a1c0d8e50>", "code": 400}}
    error = from_document(400, said)
    assert error.message == "cannot identify image file <_io.BytesIO object at 0x...>"
