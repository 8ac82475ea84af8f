"""What each kind of fault does to the moves of an answer."""

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import orjson

from engine.sim.faults import Fault
from engine.sim.moves import (
    JSON,
    LAST_CHUNK,
    STREAM_HEAD,
    Event,
    Head,
    Headers,
    Move,
    Moves,
    Raw,
    Turn,
    Whole,
    chunk,
    head,
    written,
)
from engine.sim.shapes import Shape

Twist = Callable[[Fault, Moves, Shape | None], Moves]
PAGE = b"<!DOCTYPE html><html><head><title>Bad gateway</title></head><body>Something is down.</body></html>"
HTML: Headers = (("content-type", "text/html"),)
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
GARBAGE_BYTES = 400
PIECE = b"a" * 65536
HEADER_CHARS = 1000
TEXT = re.compile(rb'("(?:content|text|delta)":")')  # where the text of an event begins


def twisted(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    """The answer with one fault; `shape` is how the route writes, where it generates."""
    with closing(moves):
        yield from TWISTS[fault.kind](fault, moves, shape)


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
        if isinstance(move, Whole | Event) and b"_tokens" in (data := json_of(move)):
            yield with_json(move, orjson.dumps(with_counts(orjson.loads(data), fault.value)))
        else:
            yield move


def with_counts(document: Any, value: int) -> Any:
    """All numbers whose name ends in `_tokens`, replaced."""
    if isinstance(document, list):
        return [with_counts(item, value) for item in document]
    if not isinstance(document, dict):
        return document
    return {
        name: value if name.endswith("_tokens") and isinstance(item, int) else with_counts(item, value)
        for name, item in document.items()
    }


def nan(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move, here in marked(moves, fault.after):
        whole = isinstance(move, Whole) and move.body.endswith(b"}")
        yield with_json(move, json_of(move)[:-1] + b',"logprob":NaN}') if here or whole else move


def cut(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    yield from until(moves, fault.after)
    yield Turn.CLOSE


def reset_after(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    yield from until(moves, fault.after)
    yield Turn.LOOP
    yield Turn.RESET


def half_event(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move, here in marked(moves, fault.after):
        if here:
            data = json_of(move)
            yield Raw(chunk(b"data: " + data[: len(data) // 2]))
            yield Turn.CLOSE
            return
        yield move


def stall(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move, here in marked(moves, fault.after):
        if here:
            yield Turn.HANG if fault.delay_s is None else fault.delay_s
        yield move


def stall_before_content(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    yield from until(moves, 0)
    yield Turn.HANG


def no_done(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move in moves:
        if not (isinstance(move, Event) and move.kind == "last"):
            yield move


def no_finish(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    """Text that came with the finish reason stays."""
    for move in moves:
        if isinstance(move, Event) and b'"finish_reason":"' in move.data:
            document = orjson.loads(json_of(move))
            for choice in document["choices"]:
                choice["finish_reason"] = None
            yield with_json(move, orjson.dumps(document))
        elif not (isinstance(move, Event) and move.kind == "finish"):
            yield move


def after_done(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move in moves:
        yield move
        if isinstance(move, Event) and move.kind == "last" and shape:
            yield Event("extra", shape.piece(0, b'" and more"'))


def bad_json(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move, here in marked(moves, fault.after):
        data = json_of(move)
        yield with_json(move, data[: len(data) // 2]) if here else move


def bad_utf8(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move, here in marked(moves, fault.after):
        yield with_json(move, TEXT.sub(b"\\1\xf0\x9f", json_of(move), 1)) if here else move


def null_delta(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move, here in marked(moves, fault.after):
        if here and shape:
            yield Event("extra", nulled(shape.piece(0, b"null")))
        yield move


def nulled(event: bytes) -> bytes:
    for whole in (b'{"content":null}', b'{"type":"text_delta","text":null}'):
        event = event.replace(whole, b"null")
    return event


def error_event(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    yield from until(moves, fault.after)
    yield from shape.error(dead(fault)) if shape else ()
    yield Turn.BODY


def error_first(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    yield STREAM_HEAD
    yield from shape.error(dead(fault)) if shape else ()
    yield Turn.BODY


def crlf(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move in moves:
        yield Event(move.kind, move.data.replace(b"\n", b"\r\n")) if isinstance(move, Event) else move


def comments(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move in moves:
        if isinstance(move, Event):
            yield Event("extra", b": still here\n\n")
        yield move


def multi_line(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    """JSON goes on over line ends wherever white space may stand: after the first comma between two fields."""
    for move in moves:
        yield with_json(move, json_of(move).replace(b',"', b',\ndata: "', 1)) if isinstance(move, Event) else move


def flood(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    for move, here in marked(moves, fault.after):
        if here and shape:
            event = Event("extra", shape.piece(0, b'" flood"'))
            yield from (event for _ in range(fault.events))
        yield move


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


def marked(moves: Moves, after: int) -> Iterator[tuple[Move, bool]]:
    """Each move, and whether it is the event that follows `after` tokens: a token, or what comes when there are no
    more. One event at most is."""
    tokens = 0
    struck = False
    for move in moves:
        kind = move.kind if isinstance(move, Event) else None
        here = not struck and (kind in ("finish", "last") or (kind == "token" and tokens >= after))
        struck |= here
        tokens += kind == "token"
        yield move, here


def until(moves: Moves, after: int) -> Moves:
    """Those before it."""
    for move, here in marked(moves, after):
        if here:
            return
        yield move


def dead(fault: Fault) -> dict[str, Any]:
    return {"error": {"message": DEAD, "type": "InternalServerError", "param": None, "code": fault.status}}


def json_of(move: Move) -> bytes:
    """The JSON of a body, or of an event of one line."""
    if isinstance(move, Whole):
        return move.body
    return move.data.partition(b"data: ")[2].partition(b"\n")[0] if isinstance(move, Event) else b""


def with_json(move: Move, document: bytes) -> Move:
    if isinstance(move, Whole):
        return move._replace(body=document)
    if isinstance(move, Event):
        begin, mark, _ = move.data.partition(b"data: ")
        return Event(move.kind, begin + mark + document + b"\n\n")
    return move


TWISTS: Mapping[str, Twist] = {
    twist.__name__: twist
    for twist in (
        hang, close_before_headers, reset, garbage, http09, slow_head, informational, status, health_flaps, html, empty,
        huge_body, huge_headers, te_and_cl, connection_close, split, usage_lies, nan, cut, reset_after, half_event,
        stall, stall_before_content, no_done, no_finish, after_done, bad_json, bad_utf8, null_delta, error_event,
        error_first, crlf, comments, multi_line, flood, truncated, wrong_length,
    )
} | {"health_lies": status}  # fmt: skip
