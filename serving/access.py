"""What is known of every request that has ended: a line of the access log and its figures, both written in batches.

One by one they would cost more than relaying the request: formatted by hand, and a tenth of a second's at a time, so
that the code is warm when it runs. A kill -9 loses that tenth.
"""

import asyncio
import atexit
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache

import orjson

from penstock import log, metrics
from penstock.log import Lines

EVERY_S = 0.1
QUIET = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds by machines: not logged
# Time of day, id, method, route, model, status, seconds, seconds to the first byte, error, whether the client had left.
# What its guards made of it, by POLICY/GUARD/DIRECTION.
Verdicts = Mapping[str, str]
Ended = tuple[float, str, str, str, str, int, float, float | None, str | None, bool, Verdicts | None]


class Access:
    """`ended` notes a request, `flush` counts and logs what was noted; `metrics.snapshot` asks for it first."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._noted: list[Ended] = []
        self._second = 0
        self._prefix = ""

    def ended(
        self,
        request_id: str,
        method: str,
        route: str,
        model: str,
        status: int,
        seconds: float,
        first_byte_s: float | None = None,
        error: str | None = None,
        gone: bool = False,
        verdicts: Verdicts | None = None,
    ) -> None:
        """Needs a running event loop. `request_id`, `route` and `error` are of harmless characters alone."""
        noted = self._noted
        if not noted:
            asyncio.get_running_loop().call_later(EVERY_S, self.flush)
        at = time.time()
        noted.append((at, request_id, method, route, model, status, seconds, first_byte_s, error, gone, verdicts))

    def flush(self) -> None:
        noted, self._noted = self._noted, []
        for one in noted:
            count(one)
        if noted and self._lines.write:
            line = self._as_json if self._lines.json else self._as_text
            self._lines.write("".join([line(one) for one in noted if one[3] not in QUIET]))

    def _as_json(self, one: Ended) -> str:
        at, request_id, method, route, model, status, seconds, _, error, gone, verdicts = one
        second = int(at)
        if second != self._second:
            self._second = second
            self._prefix = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        more = f',"model":{encoded(model)}' if model else ""
        if error or gone or self._lines.worker is not None:
            fields = {"error": error, "gone": gone or None, "worker": self._lines.worker}
            more += "".join([f',"{name}":{encoded(value)}' for name, value in fields.items() if value is not None])
        if verdicts:
            more += f',"guards":{orjson.dumps(verdicts).decode()}'
        return (
            f'{{"time":"{self._prefix}.{int((at - second) * 1000):03d}+00:00","level":"info","logger":"serving.app",'
            f'"message":"served","request_id":"{request_id}","method":"{method}","route":"{route}","status":{status},'
            f'"seconds":{seconds:.4f}{more}}}\n'
        )

    def _as_text(self, one: Ended) -> str:
        at, request_id, method, route, model, status, seconds, _, error, gone, verdicts = one
        said = " ".join(f"{guard}={verdict}" for guard, verdict in verdicts.items()) if verdicts else ""
        fields = {"model": model or None, "error": error, "gone": gone or None, "worker": self._lines.worker}
        more = f" {said}" * bool(said) + "".join(
            f" {name}={value}" for name, value in fields.items() if value is not None
        )
        return (
            f"{datetime.fromtimestamp(at):%H:%M:%S} info    serving.app: served request_id={request_id} "
            f"method={method} route={route} status={status} seconds={seconds:.4f}{more}\n"
        )


def count(one: Ended) -> None:
    _, _, _, route, model, status, seconds, first_byte_s, _, gone, _ = one
    metrics.requests.inc(route, model, status)
    metrics.seconds.observe(seconds, route)
    if first_byte_s is not None:
        metrics.first_byte_seconds.observe(first_byte_s, route)
    if gone:
        metrics.disconnects.inc(route)


@lru_cache(maxsize=1024, typed=True)  # or 1 would be true
def encoded(value: str | int | bool) -> str:
    """As JSON: the names of models come again and again."""
    return orjson.dumps(value).decode()


access = Access(log.lines)
metrics.before_snapshots(access.flush)
atexit.register(access.flush)
