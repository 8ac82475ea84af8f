"""Logs: one JSON object a line, with the request's id; never a key, never a prompt.

Nothing in Penstock logs a body or a header. The redaction here is the second fence, for text that comes from
elsewhere: an engine's own log, an exception's message.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import orjson

from penstock.stderr import stderr

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

SECRET = re.compile(r"(?i)(bearer\s+|x-api-key['\": ]+|api[-_]key['\"=: ]+|\bsk-)[\w.\-]{4,}|\bhf_\w{8,}")
STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def redact(text: str) -> str:
    """`Authorization: Bearer abcdef` -> `Authorization: Bearer [redacted]`."""
    return SECRET.sub(lambda match: f"{match[1] or ''}[redacted]", text)


class RequestIdFilter(logging.Filter):
    """Puts the id of the request being served on each record, and the worker's number where there are several."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self.worker = worker

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        record.worker = self.worker
        return True


class JsonFormatter(logging.Formatter):
    """`log.info("served", extra={"status": 200})` -> {"time": ..., "message": "served", "status": 200}."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        line |= {k: v for k, v in vars(record).items() if k not in STANDARD_FIELDS and v is not None}
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """The same for a person at a terminal: `10:02:11 info  penstock.serve: listening`."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {k: v for k, v in vars(record).items() if k not in STANDARD_FIELDS and v is not None}
        fields = "".join(f" {key}={value}" for key, value in extra.items())
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{time} {record.levelname.lower():<7} {record.name}: {redact(record.getMessage())}{fields}"
        return line + ("\n" + redact(self.formatException(record.exc_info)) if record.exc_info else "")


class Lines:
    """Where whole lines go that are formatted by hand, such as the access log's; nowhere while `write` is None."""

    write: Callable[[str], object] | None = None
    json = True
    worker: int | None = None


lines = Lines()


@contextmanager
def silenced(name: str, on: bool = True) -> Iterator[None]:
    """Nothing of this logger or of those below it, but what is critical. Only while `on`."""
    logger = logging.getLogger(name)
    before = logger.level
    if on:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def configure(
    level: str, style: str, worker: int | None = None, lost: Callable[[int], object] = lambda lines: None
) -> None:
    """Sends every logger to standard error. `style` is json, text, or auto (text on a terminal). `lost` is told how
    many lines could not be written."""
    json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    stream = stderr(lost)
    handler = logging.StreamHandler(stream)
    handler.addFilter(RequestIdFilter(worker))
    handler.setFormatter(JsonFormatter() if json else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx2").setLevel("WARNING")
    wanted = logging.getLogger().isEnabledFor(logging.INFO)
    lines.write, lines.json, lines.worker = stream.write if wanted else None, json, worker
