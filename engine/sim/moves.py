"""An answer as a series of moves: what is written, what is waited for, how the connection ends.

Every answer is a generator of moves, played one after another by `engine/sim/connection.py`; a fault is a change to
that generator.
"""

from collections.abc import Generator, Iterator, Sequence
from enum import Enum
from http import HTTPStatus
from typing import Literal, NamedTuple

Headers = Sequence[tuple[str, str]]
JSON: Headers = (("content-type", "application/json"),)
EVENT_STREAM: Headers = (("content-type", "text/event-stream; charset=utf-8"), ("transfer-encoding", "chunked"))

# role: a choice begins; token: text; finish: why a choice ended, with its last text if that was cut; last: `[DONE]`.
EventKind = Literal["role", "token", "finish", "usage", "last", "extra"]


class Whole(NamedTuple):
    """A head and a body of known length."""

    status: int
    body: bytes
    headers: Headers = JSON

    @property
    def head(self) -> bytes:
        return head(self.status, (*self.headers, ("content-length", str(len(self.body)))))


class Head(NamedTuple):
    """The head of a body that comes in chunks, up to Turn.BODY."""

    status: int = 200
    headers: Headers = EVENT_STREAM


class Event(NamedTuple):
    """One server-sent event, a chunk of its own."""

    kind: EventKind
    data: bytes


class Raw(NamedTuple):
    """Bytes as they are."""

    data: bytes


class Turn(Enum):
    """`BODY`: no more chunks. `LOOP`: others have their turn, so that what was written goes out on its own.
    `CLOSE`, `RESET`: the connection ends by FIN or RST. `HANG`: nothing more, until the client leaves."""

    BODY = "body"
    LOOP = "loop"
    CLOSE = "close"
    RESET = "reset"
    HANG = "hang"


class Ticket:
    """A place in the engine's queue: `ready` once a slot is free; `call` is what to do then."""

    __slots__ = ("call", "ready")

    def __init__(self) -> None:
        self.ready = False
        self.call = lambda: None


Wait = float | int  # seconds
Move = Whole | Head | Event | Raw | Turn | Ticket | Wait
Moves = Generator[Move]


def head(status: int, headers: Headers) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} {phrase(status)}\r\n{lines}\r\n".encode("latin-1")


def phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
STREAM_HEAD = Head()
_STREAM_HEAD = head(200, EVENT_STREAM)


def written(move: Move) -> bytes:
    """What a move puts on the wire, if anything."""
    if isinstance(move, Event):
        return chunk(move.data)
    if isinstance(move, Whole):
        return move.head + move.body
    if isinstance(move, Head):
        return _STREAM_HEAD if move is STREAM_HEAD else head(move.status, move.headers)
    if isinstance(move, Raw):
        return move.data
    return LAST_CHUNK if move is Turn.BODY else b""


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
