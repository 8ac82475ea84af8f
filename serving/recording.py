"""One generation and everybody who waits for it: recorded as it comes, given to each from the beginning.

It belongs to none of them. Who leaves takes nothing from the others; when the last has left it is ended. It runs no
further ahead than its quickest reader can follow, and what is too large to be kept no further than its slowest.
"""

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.room import Room
from penstock.errors import EngineUnavailable, PenstockError
from serving.exchange import Exchange, Headers
from serving.wire import Dialect

AHEAD_BYTES = 2**20
BATCH_BYTES = 2**16
PIECE_BYTES = 48
RECORD_BYTES = 1024
REQUEST_ID = b"request-id"
LEFT = "everybody who asked for this answer has left, and it is being ended; try again"
OF_THE_FIRST = re.compile(rb"request-id|x-penstock-cache|x-ratelimit-.*")
"""Headers that are true of one answer, and not when it is given again."""
Over = Callable[["Recording"], None]


@dataclass(frozen=True, slots=True)
class Recorded:
    """An answer that is whole. `pieces` are whole events; `at_once`: it was no stream. `size` is what it takes."""

    status: int
    headers: Headers
    pieces: Sequence[bytes]
    at_once: bool
    size: int
    verdicts: Mapping[str, str] | None = None
    """Of the guards that have looked at it."""

    async def give(self, exchange: Exchange, dialect: Dialect, marks: Headers) -> None:
        """The same answer again; `marks` say so."""
        begin(exchange, marks)
        exchange.verdicts = self.verdicts
        headers = own(self.headers, exchange, dialect, again=True)
        if self.at_once:
            return exchange.send(self.status, headers, b"".join(self.pieces))
        exchange.start(self.status, headers)
        for piece in self.pieces:
            exchange.write(piece)
            await exchange.drained()
        exchange.end()


@dataclass(slots=True, eq=False)
class Reader:
    """How far one of them is."""

    pieces: int = 0
    bytes: int = 0


class Recording(Exchange):
    """What the generation takes for its client. `kept`: it may be given to others when it is whole."""

    def __init__(self, path: str, headers: Mapping[bytes, bytes], request_id: str, room: Room) -> None:
        """`room`: what has none is not kept."""
        super().__init__("POST", path, headers)
        self.request_id = request_id
        self.kept = True
        self.error: Exception | None = None
        self._room_for_all = room
        self._held_bytes = 0
        self._over = False
        self._headers: Headers = ()
        self._at_once = False
        self._said: list[bytes] = []
        self._dropped = 0
        self._said_bytes = 0
        self._readers: set[Reader] = set()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._task: asyncio.Task[None] | None = None

    def begin(self, work: Coroutine[Any, Any, None], over: Over) -> None:
        """`over` is called once, when it has ended, however that was."""
        self._task = asyncio.get_running_loop().create_task(self._run(work, over))

    async def _run(self, work: Coroutine[Any, Any, None], over: Over) -> None:
        try:
            await work
            if not self.response_complete:
                raise PenstockError("the answer has no end")
        except Exception as error:
            self.error = error
        finally:
            self._over = True
            self._let_go()
            over(self)
            self._tell()

    def _let_go(self) -> None:
        """Nobody needs what is held here any more, once it is over and read by all."""
        if self._over and not self._readers:
            self._give_back(self._held_bytes)

    def _give_back(self, size_bytes: int) -> None:
        self._room_for_all.give_back(size_bytes)
        self._held_bytes -= size_bytes

    @property
    def good(self) -> bool:
        """Whether it may be given to those who ask later."""
        return self.kept and self.response_complete and self.status == 200 and self.error is None

    def recorded(self) -> Recorded:
        """In pieces that are quick to write."""
        assert self.status is not None
        pieces, number = [], 0
        while number < len(self._said):
            count, piece = batch(self._said, number)
            pieces.append(piece)
            number += count
        heads = sum(len(name) + len(value) for name, value in self._headers)
        size = self._said_bytes + PIECE_BYTES * len(pieces) + heads + RECORD_BYTES
        return Recorded(self.status, self._headers, pieces, self._at_once, size, self.verdicts)

    async def give(self, exchange: Exchange, dialect: Dialect, marks: Headers, *, again: bool) -> None:
        """All of it, as it comes, to the first or to one who came later (`again`). Raises what it ended in."""
        reader = Reader()
        self._readers.add(reader)
        try:
            await self._give(reader, exchange, dialect, marks, again=again)
        finally:
            exchange.verdicts = self.verdicts
            self._readers.discard(reader)
            self._let_go()
            if not self._readers and not self.response_complete and self._task:
                self.error = EngineUnavailable(LEFT, retry_after_s=1)  # for who comes while it ends
                self._task.cancel()
                self._tell()

    async def _give(self, reader: Reader, exchange: Exchange, dialect: Dialect, marks: Headers, *, again: bool) -> None:
        while True:
            news = self._news
            if self.status is not None and exchange.status is None:
                begin(exchange, marks)
                headers = own(self._headers, exchange, dialect, again=again)
                if self._at_once:
                    return exchange.send(self.status, headers, b"".join(self._said))
                exchange.failing = self.failing
                exchange.start(self.status, headers)
            while reader.pieces < self._dropped + len(self._said):
                count, piece = batch(self._said, reader.pieces - self._dropped)
                exchange.write(piece)
                reader.pieces += count
                reader.bytes += len(piece)
                self._was_read()
                await exchange.drained()
            if self.error:
                raise self.error
            if self.response_complete:
                return exchange.end()
            await news.wait()

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        self._at_once = True
        self._head(status, headers)
        self.end(body)

    def start(self, status: int, headers: Headers) -> None:
        self._head(status, headers)
        self._tell()

    def write(self, piece: bytes) -> None:
        self._take(piece)
        self._tell()

    def end(self, piece: bytes = b"") -> None:
        self._take(piece)
        self.response_complete = True
        self.source = None
        self._tell()

    async def drained(self) -> None:
        await self._room.wait()

    def _head(self, status: int, headers: Headers) -> None:
        self.status = status
        self.first_byte_at = time.perf_counter()
        self._headers = [*self.marks, *headers]

    def _take(self, piece: bytes) -> None:
        if not piece:
            return
        self._said.append(piece)
        self._said_bytes += len(piece)
        self._held_bytes += len(piece)
        if not self._room_for_all.take(len(piece)):
            self.kept = False
        if self._ahead_bytes() > AHEAD_BYTES and not self._at_once:
            self._room.clear()
            if self.source:
                self.source.pause()

    def _was_read(self) -> None:
        if not self.kept:
            read = min(reader.pieces for reader in self._readers)
            self._give_back(sum(map(len, self._said[: read - self._dropped])))
            del self._said[: read - self._dropped]
            self._dropped = read
        if not self._room.is_set() and self._ahead_bytes() <= AHEAD_BYTES:
            self._room.set()
            if self.source:
                self.source.resume()

    def _ahead_bytes(self) -> int:
        """Of whoever decides how fast it may go."""
        read = [reader.bytes for reader in self._readers]
        return self._said_bytes - (max if self.kept else min)(read, default=0)

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def begin(exchange: Exchange, marks: Headers) -> None:
    exchange.marks = [*exchange.marks, *marks]


def own(headers: Headers, exchange: Exchange, dialect: Dialect, *, again: bool) -> Headers:
    """The recorded headers, with those of this request in place of those of another."""
    others = [line for line in headers if line[0] != REQUEST_ID and not (again and OF_THE_FIRST.fullmatch(line[0]))]
    return [*others, *dialect.headers(exchange.request_id)]


def batch(pieces: Sequence[bytes], start: int) -> tuple[int, bytes]:
    """So many pieces from `start` on as are worth writing together, at least one."""
    end, size = start, 0
    while end < len(pieces) and size < BATCH_BYTES:
        size += len(pieces[end])
        end += 1
    return end - start, pieces[start] if end == start + 1 else b"".join(pieces[start:end])
