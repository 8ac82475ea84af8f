"""Faults of a stream that has begun: where it breaks off, and what else comes in it."""

import re

import orjson

from engine.sim.broken_answers import dead
from engine.sim.faults import Fault
from engine.sim.moves import STREAM_HEAD, Event, Moves, Raw, Turn, Whole, chunk, json_of, marked, until, with_json
from engine.sim.shapes import Shape

TEXT = re.compile(rb'("(?:content|text|delta)":")')  # where the text of an event begins


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
        if here and isinstance(move, Event):
            yield Raw(chunk(move.data[: len(move.data) // 2]))
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


STREAMS = (
    nan, cut, reset_after, half_event, stall, stall_before_content, no_done, no_finish, after_done, bad_json,
    bad_utf8, null_delta, error_event, error_first, crlf, comments, multi_line, flood,
)  # fmt: skip
