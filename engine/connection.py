"""HTTP/1.1 to one engine: keep-alive connections over TCP, TLS or a Unix socket, answers given out as they come.

`asyncio.Protocol` and httptools, without a task or a future per answer: a `Sink` is called with what each read
brought. One request at a time goes over a connection; it returns to the idle ones only after a whole, well-formed
answer, and whatever else happens to it closes it.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import httptools

from penstock.errors import EngineError, EngineTimeout, EngineUnavailable

CONNECT_TIMEOUT_S = 1.0
HANDSHAKE_TIMEOUT_S = 5.0
# Shorter than vLLM's own 5 seconds: a connection that it closes as we reuse it looks like a dying engine.
KEEP_ALIVE_S = 3.0
MAX_HEAD_BYTES = 64 * 2**10
MAX_SMALL_ANSWER_BYTES = 16 * 2**20
RETRY_AFTER_S = 5


class ConnectionBroke(EngineError):
    """The connection ended before the answer did. `unanswered`: before its first byte."""

    def __init__(self, message: str, *, unanswered: bool) -> None:
        super().__init__(message)
        self.unanswered = unanswered


class Sink(Protocol):
    """Takes one answer. Of the last two exactly one is called, once, and nothing after it; neither after `abort`."""

    def answered(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """The answer's head; header names are in lower case."""

    def received(self, data: bytes) -> None:
        """What one read brought of the body."""

    def ended(self) -> None:
        """The body is as long as its head said."""

    def broke(self, error: EngineError) -> None: ...


class Connection(asyncio.Protocol):
    """Carries one request after another; `idle` is called when it may carry the next."""

    def __init__(self, idle: Callable[["Connection"], None], lost: Callable[["Connection"], None]) -> None:
        self.idle_since = 0.0
        self._idle = idle
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._paused = False
        self._parser = httptools.HttpResponseParser(self)
        self._begin()

    def _begin(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._head_bytes = 0
        self._answered = False
        self._complete = False
        self._keep_alive = False

    def send(self, request: bytes, sink: Sink) -> None:
        assert self._sink is None
        assert self._transport is not None
        self._sink = sink
        self._transport.write(request)

    def pause(self) -> None:
        """No more is read until `resume`: the engine feels that its reader is slow."""
        if self._transport and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Closes at once, telling nobody: the engine sees that its answer is not wanted."""
        self._sink = None
        if self._transport:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a stream, always
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._sink is None:  # nothing was asked
            return self.abort()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            return self.fail(f"the engine's answer is not HTTP/1.1: {error}")
        except httptools.HttpParserUpgrade:
            return self.fail("the engine wants to speak another protocol")
        if not self._answered:
            self._head_bytes += len(data)
        elif len(data) > MAX_HEAD_BYTES:  # a head too large may have come in one read
            self._head_bytes = sum(len(name) + len(value) for name, value in self._headers.items())
        if self._head_bytes > MAX_HEAD_BYTES:
            return self.fail(f"the head of the engine's answer is larger than {MAX_HEAD_BYTES} bytes")
        pieces = self._pieces
        if pieces and self._sink:
            self._pieces = []
            self._sink.received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._complete and self._sink:  # which may have aborted in between
            self._finish(self._sink)

    def _finish(self, sink: Sink) -> None:
        """The answer is whole: another request may be sent before its sink knows."""
        self._sink = None
        if self._keep_alive and self.usable and not self._paused:  # who would resume it?
            self._begin()
            self._idle(self)
        elif self._transport:
            self._transport.close()
        sink.ended()

    def on_message_begin(self) -> None:
        if self._complete:  # more than one answer: the second is nobody's
            raise ValueError("more was sent than asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._answered:  # trailers are no part of the head
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue, 103 Early Hints: the answer is yet to come
            self._headers = {}
            return
        if self._sink:
            self._answered = True
            self._sink.answered(status, self._headers)

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._complete = self._answered
        self._keep_alive = self._parser.should_keep_alive()

    def fail(self, why: str) -> None:
        """Closes at once, and tells whoever waits for an answer why."""
        sink, self._sink = self._sink, None
        self.abort()
        if sink:
            sink.broke(ConnectionBroke(why, unanswered=False))

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        delimited = b"content-length" in self._headers or b"transfer-encoding" in self._headers
        if self._answered and not delimited and error is None:  # RFC 9112, section 6.3: the close is the end
            return sink.ended()
        nothing_came = not self._answered and not self._head_bytes
        sink.broke(ConnectionBroke("the engine closed the connection", unanswered=nothing_came))


@dataclass(frozen=True)
class Answer:
    """A whole answer, for what is not streamed. `usage` is what a generation says that it has cost."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes
    usage: Mapping[str, Any] | None = None


class Whole:
    """A sink that collects. `answer` ends with the answer or with the error."""

    def __init__(self, limit_bytes: int) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.complete = False
        self._limit_bytes = limit_bytes
        self._status = 0
        self._headers: Mapping[bytes, bytes] = {}
        self._body = bytearray()

    def answered(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self._status, self._headers = status, headers

    def received(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._limit_bytes:
            self.broke(EngineError(f"the engine's answer is larger than {self._limit_bytes} bytes"))

    def ended(self) -> None:
        self.complete = True
        if not self.answer.done():
            self.answer.set_result(Answer(self._status, self._headers, bytes(self._body)))

    def broke(self, error: EngineError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Client:
    """One engine's address and its open connections. `http://host:8000/base`, `https://...` or `unix:/run/e.sock`."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url
        self.socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        parts = urlsplit("http://engine" if self.socket else url)
        self.secure = parts.scheme == "https"
        self.host = parts.hostname or "localhost"
        self.port = parts.port or (443 if self.secure else 80)
        self._base = parts.path.rstrip("/").encode()
        # Asked for no compression, since bytes are passed on as they come.
        self._usual = b"host: " + parts.netloc.rpartition("@")[2].encode() + b"\r\naccept-encoding: identity\r\n"
        self.use_key(api_key)
        self._tls = ssl.create_default_context() if self.secure else None
        self._waiting: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._closed = False

    def use_key(self, api_key: str | None) -> None:
        """From the next request on."""
        key = b"authorization: Bearer " + api_key.encode("latin-1") + b"\r\n" if api_key else b""
        self._fixed = self._usual + key
        self._heads: dict[tuple[str, str], bytes] = {}

    @property
    def place(self) -> str:
        """The address for people: without what of it may be a secret."""
        return self.socket or f"{self.host}:{self.port}"

    def request(self, method: str, path: str, body: bytes = b"", headers: bytes = b"") -> bytes:
        """The bytes of a request; `headers` are whole lines."""
        head = self._heads.get((method, path))
        if head is None:
            head = b"%s %s%s HTTP/1.1\r\n%s" % (method.encode(), self._base, path.encode(), self._fixed)
            if method == "POST":
                head += b"content-type: application/json\r\n"
            self._heads[method, path] = head
        if method == "POST":
            return b"%b%bcontent-length: %d\r\n\r\n%b" % (head, headers, len(body), body)
        return head + headers + b"\r\n"

    def idle(self) -> Connection | None:
        """An open connection that carries nothing, the last used first: those not needed grow old and are closed."""
        now = time.monotonic()
        while self._waiting:
            connection = self._waiting.pop()
            if connection.usable and now - connection.idle_since < KEEP_ALIVE_S:
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        """A new connection. Raises EngineUnavailable."""
        loop = asyncio.get_running_loop()

        def protocol() -> Connection:
            return Connection(self.keep, self._lost)

        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S + (HANDSHAKE_TIMEOUT_S if self.secure else 0)):
                if self.socket:
                    _, connection = await loop.create_unix_connection(protocol, self.socket)
                else:
                    _, connection = await loop.create_connection(protocol, self.host, self.port, ssl=self._tls)
        except (OSError, TimeoutError) as error:
            raise EngineUnavailable("the engine does not accept connections", retry_after_s=RETRY_AFTER_S) from error
        self._open.add(connection)
        if self._closed:
            connection.abort()
            raise EngineUnavailable("the engine is being taken away", retry_after_s=RETRY_AFTER_S)
        return connection

    async def ask(self, method: str, path: str, body: bytes = b"", *, timeout_s: float) -> Answer:
        """A whole answer, of whatever status. Raises EngineError, EngineTimeout."""
        sink = Whole(MAX_SMALL_ANSWER_BYTES)
        connection: Connection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self.connect()
                connection.send(self.request(method, path, body), sink)
                return await sink.answer
        except TimeoutError as error:
            raise EngineTimeout(f"{path} was not answered within {timeout_s:g} s") from error
        finally:
            if connection and not sink.complete:  # else it may carry another request by now
                connection.abort()

    def keep(self, connection: Connection) -> None:
        """It carries nothing, and may carry the next request."""
        connection.idle_since = now = time.monotonic()
        if self._closed:
            return connection.abort()
        self._waiting.append(connection)
        if now - self._waiting[0].idle_since > KEEP_ALIVE_S:  # since a peak nobody has needed it
            self._waiting.popleft().abort()

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._waiting:
            self._waiting.remove(connection)

    def close(self) -> None:
        self._closed = True
        for connection in list(self._open):
            connection.fail("the engine is being taken away")
