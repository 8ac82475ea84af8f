"""Logs: one JSON object a line, with the request's id; never a key, never a prompt.

Nothing in Penstock logs a body or a header. The redaction here is the second fence, for text that comes from
elsewhere: an engine's own log, an exception's message.
"""

import asyncio
import atexit
import logging
import re
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
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


class AccessLog:
    """A line for every request served, beside `logging`: formatted by hand and written in batches, since the ordinary
    way costs more than serving the request. A kill -9 loses the last tenth of a second of it."""

    EVERY_S = 0.1

    def __init__(self) -> None:
        self._write: Callable[[str], object] | None = None
        self._json = True
        self._worker: int | None = None
        self._lines: list[str] = []
        self._second = 0
        self._prefix = ""

    def configure(self, write: Callable[[str], object] | None, *, json: bool, worker: int | None = None) -> None:
        """`write` takes whole lines; None: nothing is logged. `worker` stands on each line, if there are several."""
        self._write, self._json, self._worker = write, json, worker

    def served(
        self,
        request_id: str,
        method: str,
        route: str,
        model: str,
        status: int,
        seconds: float,
        error: str | None = None,
        gone: bool = False,
    ) -> None:
        """Needs a running event loop. `request_id`, `route` and `error` are of harmless characters alone."""
        if self._write is None:
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(self.EVERY_S, self.flush)
        fields = {"model": model or None, "error": error, "gone": gone or None, "worker": self._worker}
        line = self._as_json if self._json else self._as_text
        self._lines.append(line(request_id, method, route, status, seconds, fields))

    def _as_json(
        self, request_id: str, method: str, route: str, status: int, seconds: float, fields: dict[str, Any]
    ) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._prefix = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        more = "".join([f',"{name}":{encoded(value)}' for name, value in fields.items() if value is not None])
        return (
            f'{{"time":"{self._prefix}.{int((now - second) * 1000):03d}+00:00","level":"info","logger":"serving.app",'
            f'"message":"served","request_id":"{request_id}","method":"{method}","route":"{route}","status":{status},'
            f'"seconds":{seconds:.4f}{more}}}\n'
        )

    def _as_text(
        self, request_id: str, method: str, route: str, status: int, seconds: float, fields: dict[str, Any]
    ) -> str:
        more = "".join(f" {name}={value}" for name, value in fields.items() if value is not None)
        return (
            f"{datetime.now():%H:%M:%S} info    serving.app: served request_id={request_id} method={method} "
            f"route={route} status={status} seconds={seconds:.4f}{more}\n"
        )

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines and self._write:
            self._write("".join(lines))


@lru_cache(maxsize=1024, typed=True)  # or 1 would be true
def encoded(value: str | int | bool) -> str:
    """As JSON: the names of models come again and again."""
    return orjson.dumps(value).decode()


access = AccessLog()


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
    access.configure(stream.write if wanted else None, json=json, worker=worker)
    atexit.register(access.flush)
