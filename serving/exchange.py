"""One request and its answer, whatever carries them: the small interface between handlers and HTTP."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from penstock.errors import BodyTooLarge

Headers = Sequence[tuple[bytes, bytes]]
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Exchange(Protocol):
    """`path` is the decoded path of the request line, never rebuilt from other headers; header names are lower case."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    request_id: str
    status: int | None
    """What was answered, None while nothing is out: only until then an error can still become a status."""
    first_byte_at: float | None
    """When that was, by `time.perf_counter`."""

    async def body(self, limit_bytes: int) -> bytes:
        """The whole body. Raises BodyTooLarge before it is read in full."""

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer."""

    async def start(self, status: int, headers: Headers) -> None:
        """The head of an answer that `write` streams and `end` ends. These three raise ClientGone."""

    async def write(self, piece: bytes) -> None: ...

    async def end(self) -> None: ...

    async def gone(self) -> None:
        """Returns when the client has left. To be awaited only after the body was read."""


class ClientGone(Exception):
    """The client left, or does not read, before its answer was complete."""


class AsgiExchange:
    """An exchange over ASGI 3."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, unread_s: float) -> None:
        """`unread_s`: how long a piece may wait for a client that does not read."""
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self.request_id = ""
        self.status: int | None = None
        self.first_byte_at: float | None = None
        self._receive = receive
        self._asgi_send = send
        self._unread_s = unread_s
        self._body_read = asyncio.Event()

    async def body(self, limit_bytes: int) -> bytes:
        declared = self.headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit_bytes:
            raise too_large(limit_bytes)
        pieces: list[bytes] = []
        size = 0
        while True:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                raise ClientGone
            piece = event.get("body", b"")
            pieces.append(piece)
            size += len(piece)
            if size > limit_bytes:
                raise too_large(limit_bytes)
            if not event.get("more_body"):
                self._body_read.set()
                return b"".join(pieces)

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self._send({"type": "http.response.body", "body": body})

    async def start(self, status: int, headers: Headers) -> None:
        self.status = status
        self.first_byte_at = time.perf_counter()
        own = [(b"x-request-id", self.request_id.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})

    async def write(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def _send(self, event: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._unread_s):
                await self._asgi_send(event)
        except OSError as error:  # TimeoutError is one
            raise ClientGone from error

    async def gone(self) -> None:
        await self._body_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


def too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit_bytes} bytes (gateway.max_body_bytes)")
