"""One client's connection: HTTP/1.1 by hand, so that a fault decides every byte and when it goes out.

asyncio tells of the socket, httptools (`on_...`) of the request; `play` makes the moves of each answer: a write for
each event, a timer only where a move asks for time, no task at all.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, MutableSet
from dataclasses import dataclass, field
from typing import Any, cast

import httptools
import orjson

from engine.sim.moves import Event, Moves, Ticket, Turn, Whole, chunk, written

MAX_BODY_BYTES = 256 * 2**20
MAX_PIPELINED = 64
WRITES_IN_A_ROW = 16
CATCH_UP_S = 1.0  # a machine that was busy for longer does not make up for it
CLOSES = (("content-type", "text/plain"), ("connection", "close"))
NUMBERS = (float, int)
AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER 0: close() resets


@dataclass
class Received:
    """A request as it came."""

    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case
    raw: bytes = b""

    @property
    def body(self) -> Any:
        """The JSON; raises orjson.JSONDecodeError."""
        return orjson.loads(self.raw)


class Connection(asyncio.Protocol):
    def __init__(
        self,
        answer: Callable[[Received], Moves],
        refuses: Callable[[], bool],
        open: MutableSet["Connection"],
        keep_alive_s: float,
    ) -> None:
        """`answer` makes the moves of each request, `refuses` says of a new connection that it is reset at once."""
        self.answer = answer
        self.refuses = refuses
        self.open = open
        self.keep_alive_s = keep_alive_s
        self.loop = asyncio.get_running_loop()
        self.parser = httptools.HttpRequestParser(self)
        self.request = Received()
        self.pieces: list[bytes] = []
        self.url = b""
        self.received_bytes = 0
        self.pipelined: deque[tuple[Received, bool]] = deque()
        self.moves: Moves | None = None
        self.stays = True
        self.timer: asyncio.Handle | None = None
        self.idle: asyncio.TimerHandle | None = None
        self.idle_since_s = self.due_s = self.loop.time()
        self.paused = self.blocked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none, and does all that one does
        self.open.add(self)
        if self.refuses():
            return self.reset()
        self.idle = self.loop.call_later(self.keep_alive_s, self._close_if_idle)

    def data_received(self, data: bytes) -> None:
        self.idle_since_s = self.loop.time()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:  # such as h2c: the answer in HTTP/1.1 declines it
            self.parser = httptools.HttpRequestParser(self)
            self.data_received(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if self.moves is None:
                self.transport.write(written(Whole(400, b"Invalid HTTP request received.", CLOSES)))
            self._turn(Turn.CLOSE)

    def connection_lost(self, error: Exception | None) -> None:
        self.open.discard(self)
        for handle in (self.timer, self.idle):
            if handle:
                handle.cancel()
        self._drop()
        self.pipelined.clear()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.blocked:
            self.blocked = False
            self.play()

    def on_message_begin(self) -> None:
        self.request, self.pieces, self.url, self.received_bytes = Received(), [], b"", 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.request.method = self.parser.get_method().decode("latin-1")
        self.request.path = self.url.partition(b"?")[0].decode("latin-1")
        if self.request.headers.get("expect", "").lower() == "100-continue" and not self.moves:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)
        self.received_bytes += len(body)
        if self.received_bytes > MAX_BODY_BYTES:
            self.transport.abort()

    def on_message_complete(self) -> None:
        self.request.raw = b"".join(self.pieces)
        self.pipelined.append((self.request, self.parser.should_keep_alive()))
        if len(self.pipelined) > MAX_PIPELINED:
            self.transport.abort()
        elif self.moves is None:
            self._take()
            self.play()

    def play(self) -> None:
        """Goes on with the moves until one of them has to be waited for."""
        self.timer = None
        writes = 0
        while self.moves is not None:
            if self.paused:
                self.blocked = True
                return
            if writes == WRITES_IN_A_ROW:
                self.timer = self.loop.call_soon(self.play)
                return
            move = next(self.moves, None)
            if isinstance(move, Event):
                self.transport.write(chunk(move.data))
                writes += 1
            elif isinstance(move, NUMBERS):
                if move and self._waits(move):
                    return
            elif isinstance(move, Ticket):
                if not move.ready:
                    move.call = self._granted
                    return
            elif move is None:
                self._answered()
            elif isinstance(move, Turn) and move is not Turn.BODY:
                return self._turn(move)
            else:
                self.transport.write(written(move))
                writes += 1

    def _waits(self, seconds: float) -> bool:
        """Whether there is any time left to wait: what was lost to a busy machine is made up for."""
        now_s = self.loop.time()
        self.due_s = max(self.due_s + seconds, now_s - CATCH_UP_S)
        if self.due_s <= now_s:
            return False
        self.timer = self.loop.call_at(self.due_s, self.play)
        return True

    def _granted(self) -> None:
        self.due_s = self.loop.time()
        self.play()

    def _turn(self, turn: Turn) -> None:
        if turn is Turn.LOOP:
            self.timer = self.loop.call_soon(self.play)
        elif turn is Turn.CLOSE:
            self._drop()
            self.transport.close()
        elif turn is Turn.RESET:
            self._drop()
            self.reset()

    def reset(self) -> None:
        """RST over TCP; over a Unix socket, which knows none, a plain close."""
        with contextlib.suppress(OSError):
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        self.transport.abort()

    def _take(self) -> None:
        request, self.stays = self.pipelined.popleft()
        self.due_s = self.loop.time()
        self.moves = self.answer(request)

    def _answered(self) -> None:
        self.moves = None
        if not self.stays:
            self.transport.close()
        elif self.pipelined:
            self._take()
        else:
            self.idle_since_s = self.loop.time()
            if self.idle is None:
                self.idle = self.loop.call_later(self.keep_alive_s, self._close_if_idle)

    def _close_if_idle(self) -> None:
        self.idle = None
        if self.moves is not None:
            return
        left_s = self.idle_since_s + self.keep_alive_s - self.loop.time()
        if left_s <= 0:
            self.transport.close()
        else:
            self.idle = self.loop.call_later(left_s, self._close_if_idle)

    def _drop(self) -> None:
        """The answer is over, complete or not; its generation notices."""
        if self.moves is not None:
            self.moves.close()
            self.moves = None
