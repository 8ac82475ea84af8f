"""Faults of any answer: none at all, another one, or the same with a head, a length or figures that are wrong."""

import random
import time
from collections.abc import Iterator
from typing import Any

import orjson

from engine.sim.faults import Fault
from engine.sim.moves import (
    JSON,
    LAST_CHUNK,
    Event,
    Head,
    Headers,
    Moves,
    Raw,
    Turn,
    Whole,
    chunk,
    head,
    json_of,
    phrase,
    with_json,
    written,
)
from engine.sim.scheduler import BUSY
from engine.sim.shapes import Shape

PAGE = b"<!DOCTYPE html><html><head><title>Bad gateway</title></head><body>Something is down.</body></html>"
HTML: Headers = (("content-type", "text/html"),)
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
GARBAGE_BYTES = 400
PIECE = b"a" * 65536
HEADER_CHARS = 1000


def hang(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    yield Turn.HANG


def close_before_headers(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    yield Turn.CLOSE


def reset(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    yield Turn.RESET


def garbage(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    yield Raw(random.Random(fault.seed).randbytes(GARBAGE_BYTES))
    yield Turn.CLOSE


def http09(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move in moves:
        if isinstance(move, Whole):
            yield Raw(move.body)
        elif isinstance(move, Event):
            yield Raw(move.data)
        elif not isinstance(move, Head) and move is not Turn.BODY:
            yield move
    yield Turn.CLOSE


def slow_head(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    delay_s = 1.0 if fault.delay_s is None else fault.delay_s
    for move in moves:
        if isinstance(move, Whole | Head):
            lines = written(move).partition(b"\r\n\r\n")[0].split(b"\r\n")
            for line in lines:
                yield Raw(line + b"\r\n")
                yield delay_s / len(lines)
            yield Raw(b"\r\n" + (move.body if isinstance(move, Whole) else b""))
        else:
            yield move


def informational(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    yield Raw(head(100, ()) + head(103, (("link", "</style.css>; rel=preload"),)))
    yield from moves


def status(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    headers: Headers = HTML if fault.html else JSON
    if fault.retry_after_s is not None:
        headers = (*headers, ("retry-after", str(fault.retry_after_s)))
    yield Whole(fault.status, PAGE if fault.html else orjson.dumps(dead(fault)), headers)


def health_flaps(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    down = int((time.monotonic() - fault.since_s) / fault.period_s) % 2
    if down:
        yield Whole(503, b"", ())
    else:
        yield from moves


def html(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    yield Whole(200, PAGE, HTML)


def empty(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    yield Whole(200, b"")


def huge_body(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    size = fault.size_mb * 2**20
    first = next(moves)
    if isinstance(first, Head):
        yield first
        begin, end = b'data: {"choices":[{"index":0,"delta":{"content":"', b'"}}]}\n\n'
        pieces = (chunk(piece) for piece in large(begin, end, size))
        yield from map(Raw, pieces)
        yield Turn.BODY
        return
    yield Raw(head(200, (*JSON, ("content-length", str(size)))))
    yield from map(Raw, large(b'{"choices":[{"index":0,"message":{"content":"', b'"}}]}', size))


def large(begin: bytes, end: bytes, size: int) -> Iterator[bytes]:
    """So many bytes, from `begin` to `end`."""
    yield begin
    left = size - len(begin) - len(end)
    while left > 0:
        yield PIECE[:left]
        left -= len(PIECE)
    yield end


def huge_headers(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    lines = [(f"x-large-{number}", "a" * HEADER_CHARS) for number in range(fault.size_kb * 1024 // HEADER_CHARS + 1)]
    yield from with_headers(moves, *lines)


def te_and_cl(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move in moves:
        if isinstance(move, Head):
            yield move._replace(headers=(*move.headers, ("content-length", "5")))
        elif isinstance(move, Whole):
            framed = move._replace(headers=(*move.headers, ("transfer-encoding", "chunked")))
            yield Raw(framed.head + chunk(move.body) + LAST_CHUNK)
        else:
            yield move


def connection_close(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    yield from with_headers(moves, ("connection", "close"))
    yield Turn.CLOSE


def with_headers(moves: Moves, *added: tuple[str, str]) -> Moves:
    for move in moves:
        if isinstance(move, Whole | Head):
            yield move._replace(headers=(*move.headers, *added))
        else:
            yield move


def split(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move in moves:
        data = written(move)
        for at in range(len(data)):
            yield Raw(data[at : at + 1])
            yield Turn.LOOP
        if not data:
            yield move


def usage_lies(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move in moves:
        document = json_of(move)
        if b'"usage":{' in document:
            yield with_json(move, orjson.dumps(with_counts(orjson.loads(document), fault.value, inside=False)))
        else:
            yield move


def with_counts(document: Any, value: int, *, inside: bool) -> Any:
    """All numbers `inside` a field called usage, replaced."""
    if isinstance(document, dict):
        fields = document.items()
        return {name: with_counts(item, value, inside=inside or name == "usage") for name, item in fields}
    if isinstance(document, list):
        return [with_counts(item, value, inside=inside) for item in document]
    return value if inside and isinstance(document, int) else document


def truncated(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move in moves:
        if isinstance(move, Whole):
            yield Raw(move.head + move.body[: len(move.body) // 2])
            yield Turn.CLOSE
            return
        yield move


def wrong_length(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move in moves:
        if isinstance(move, Whole):
            claimed = str(max(0, len(move.body) + fault.by))
            yield Raw(head(move.status, (*move.headers, ("content-length", claimed))) + move.body)
        else:
            yield move


def dead(fault: Fault) -> dict[str, Any]:
    """vLLM's error of that status."""
    said = phrase(fault.status)
    message = {500: DEAD, 503: BUSY}.get(fault.status, f"{said}: simulated")
    kind = {500: "InternalServerError", 400: "BadRequestError"}.get(fault.status, said)
    return {"error": {"message": message, "type": kind, "param": None, "code": fault.status}}


ANSWERS = (
    hang, close_before_headers, reset, garbage, http09, slow_head, informational, status, health_flaps, html, empty,
    huge_body, huge_headers, te_and_cl, connection_close, split, usage_lies, truncated, wrong_length,
)  # fmt: skip
