"""One request and its answer, whatever carries them: the small interface between handlers and HTTP.

Answers are given without waiting: who sends them faster than the client reads is asked to pause (`source`), and a
client that reads nothing for `unread_s` is taken for gone. When a client leaves, `on_gone` is called, once.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.asked import Source
from penstock.callers import Caller
from penstock.errors import BodyTooLarge, BodyTooSlow, PenstockError

if TYPE_CHECKING:
    from serving.ledger import Cost

Headers = Sequence[tuple[bytes, bytes]]
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

PAUSE_AT = 64
SLOWEST_BYTES_PER_S = 1024


class Exchange:
    """`path` is the decoded path of the request line, never rebuilt from other headers; header names are lower case."""

    request_id = ""
    marks: Headers = ()
    """Headers that the answer will bear beside its own."""
    status: int | None = None
    """What was answered, None while nothing is out: only until then an error can still become a status."""
    first_byte_at: float | None = None
    """When that was, by `time.perf_counter`."""
    deadline: float | None = None
    """When the caller no longer wants the answer, once that was looked up, by the loop's clock."""
    gone = False
    response_complete = False
    tenant = ""
    """Whose request it is, once that is known."""
    caller: Caller | None = None
    """Who asks, once that is known."""
    version: str | None = None
    """The registered version that answers, once it does."""
    cost: "Cost | None" = None
    """What an engine was asked for it, and says that it has cost."""
    verdicts: Mapping[str, str] | None = None
    """Which guards have run, and what came of it."""
    failing: "Callable[[PenstockError], bytes] | None" = None
    """The events that a stream which has begun has for whatever ends it, before the one that tells the error."""
    source: Source | None = None
    _size = 0
    _whole = False
    _more: asyncio.Event | None = None

    def __init__(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.on_gone: Callable[[], object] = nothing
        self._pieces: list[bytes] = []

    def feed(self, piece: bytes) -> None:
        """A piece of the body has come."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._more:
            self._more.set()

    def fed(self) -> None:
        """The body is complete."""
        self._whole = True
        if self._more:
            self._more.set()

    def unfed(self) -> None:
        """It is not: what seemed its end was none. Nobody has looked yet."""
        self._whole = False

    @property
    def is_whole(self) -> bool:
        """Whether the body has been received."""
        return self._whole

    async def body(self, limit_bytes: int, patience_s: float) -> bytes:
        """The whole body. Raises BodyTooLarge before it is read in full, BodyTooSlow."""
        declared = self.headers.get(b"content-length", b"0")
        if self._size > limit_bytes or (declared.isdigit() and int(declared) > limit_bytes):
            raise too_large(limit_bytes)
        if not self._whole:
            await self._until_whole(limit_bytes, patience_s)
        return self.whole(limit_bytes)

    def whole(self, limit_bytes: int) -> bytes:
        """The body, which has been received. Raises BodyTooLarge."""
        if self._size > limit_bytes:
            raise too_large(limit_bytes)
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    async def _until_whole(self, limit_bytes: int, patience_s: float) -> None:
        self.wanted()
        self._more = asyncio.Event()
        due = asyncio.get_running_loop().time() + patience_s
        while not self._whole:
            try:
                async with asyncio.timeout_at(due + self._size / SLOWEST_BYTES_PER_S):
                    await self._more.wait()
            except TimeoutError:
                raise BodyTooSlow(f"after {patience_s:g} s the body is not complete") from None
            self._more.clear()
            if self._size > limit_bytes:
                self._pieces.clear()
                raise too_large(limit_bytes)

    def wanted(self) -> None:
        """The body will be read: a client that waits to be told so is told."""

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer."""
        raise NotImplementedError

    def start(self, status: int, headers: Headers) -> None:
        """The head of an answer that `write` streams and `end` ends."""
        raise NotImplementedError

    def write(self, piece: bytes) -> None:
        raise NotImplementedError

    def end(self, piece: bytes = b"") -> None:
        raise NotImplementedError

    async def drained(self) -> None:
        """Returns when the client has read enough for more to be worth sending."""
        raise NotImplementedError

    def leave(self) -> None:
        """The client has left."""
        if not self.gone:
            self.gone = True
            self.on_gone()


class AsgiExchange(Exchange):
    """An exchange over ASGI 3: `carry` runs a handler with it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, unread_s: float) -> None:
        """`unread_s`: how long a piece may wait for a client that does not read."""
        super().__init__(scope["method"], scope["path"], dict(scope["headers"]))
        self._receive = receive
        self._asgi_send = send
        self._unread_s = unread_s
        self._outgoing: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._readable = asyncio.Event()
        self._readable.set()
        self._paused: Source | None = None

    async def carry(self, handler: Callable[[Exchange], Awaitable[None]]) -> None:
        """Returns when the handler has, and all it answered is sent."""
        listening = asyncio.create_task(self._listen())
        sending = asyncio.create_task(self._send_all())
        try:
            await handler(self)
            self.on_gone = nothing
            self._outgoing.put_nowait(None)
            await sending
        finally:
            listening.cancel()
            sending.cancel()
            await asyncio.gather(listening, sending, return_exceptions=True)

    async def _listen(self) -> None:
        while True:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                return None if self.response_complete else self.leave()
            self.feed(event.get("body", b""))
            if not event.get("more_body"):
                self.fed()

    async def _send_all(self) -> None:
        while event := await self._outgoing.get():
            try:
                async with asyncio.timeout(self._unread_s):
                    await self._asgi_send(event)
            except OSError:  # TimeoutError is one
                return self.leave()
            if self._outgoing.empty():
                self._readable.set()
                if self._paused:
                    self._paused.resume()
                    self._paused = None

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        self.end(body)

    def start(self, status: int, headers: Headers) -> None:
        self.status = status
        self.first_byte_at = time.perf_counter()
        own = [(b"x-request-id", self.request_id.encode()), *self.marks]
        self._put({"type": "http.response.start", "status": status, "headers": [*own, *headers]})

    def write(self, piece: bytes) -> None:
        self._put({"type": "http.response.body", "body": piece, "more_body": True})

    def end(self, piece: bytes = b"") -> None:
        self.response_complete = True
        self._put({"type": "http.response.body", "body": piece})

    def _put(self, event: dict[str, Any]) -> None:
        self._outgoing.put_nowait(event)
        if self._outgoing.qsize() > PAUSE_AT:
            self._readable.clear()
            if self.source and self._paused is not self.source:
                self._paused = self.source
                self._paused.pause()

    async def drained(self) -> None:
        await self._readable.wait()


def nothing() -> None:
    """What happens where nobody minds."""


def too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit_bytes} bytes (gateway.max_body_bytes)")
