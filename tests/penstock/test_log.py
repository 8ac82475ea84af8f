"""Logs are JSON, carry the request's id, and hold no secret."""

import io
import json
import logging

import pytest

from penstock import log


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A logger's output as the JSON handler writes it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(log.RequestIdFilter())
    handler.setFormatter(log.JsonFormatter())
    logger = logging.getLogger("penstock.test")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    logger.setLevel("DEBUG")
    return stream


def test_a_line_is_an_object_with_the_fields_and_the_request_id(lines: io.StringIO) -> None:
    token = log.request_id.set("req_1")
    logging.getLogger("penstock.test").info("served %s", "x", extra={"status": 200})
    log.request_id.reset(token)
    line = json.loads(lines.getvalue())
    assert (line["message"], line["status"], line["request_id"], line["level"]) == ("served x", 200, "req_1", "info")


def test_an_exception_stays_on_one_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("with\nnewline")
    except ValueError:
        logging.getLogger("penstock.test").exception("failed")
    assert lines.getvalue().count("\n") == 1
    assert "ValueError" in json.loads(lines.getvalue())["exception"]


@pytest.mark.parametrize(
    "text",
    [
        "authorization: Bearer abcd1234efgh",
        "x-api-key: abcd1234efgh",
        "{'x-api-key': 'abcd1234efgh'}",
        "key sk-abcd1234efgh used",
        "--api-key abcd1234efgh",
        "token hf_abcd1234efgh",
    ],
)
def test_what_looks_like_a_key_is_left_out(lines: io.StringIO, text: str) -> None:
    logging.getLogger("penstock.test").warning(text)
    assert "abcd1234efgh" not in lines.getvalue()
    assert "[redacted]" in lines.getvalue()


def test_who_is_silenced_speaks_again_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("penstock.quiet.part")
    with log.silenced("penstock.quiet"):
        logger.warning("no")
    with log.silenced("penstock.quiet", on=False):
        logger.warning("yes")
    logger.warning("again")
    assert caplog.messages == ["yes", "again"]


def test_ordinary_text_is_left_alone() -> None:
    text = "INFO 11-22 api_server.py listening, risk-free task-list; the bearer of news"
    assert log.redact(text) == text


def test_a_workers_lines_bear_its_number() -> None:
    record = logging.makeLogRecord({"msg": "x"})
    log.RequestIdFilter(worker=2).filter(record)
    assert json.loads(log.JsonFormatter().format(record))["worker"] == 2
