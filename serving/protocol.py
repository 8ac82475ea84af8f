"""uvicorn's HTTP protocol with the generation routes taken out before ASGI: `http=HotProtocol` in its configuration.

What is not a POST to one of them goes the usual way to the ASGI application. Keep-alive, pipelining, TLS and the
graceful shutdown are uvicorn's for both. Beyond it, for every request: the head is bounded, a client that sends slowly
is not waited for without end, and what is not HTTP is answered in JSON.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.exchange import Exchange, Headers

if TYPE_CHECKING:
    from serving.app import Gateway

MAX_HEAD_BYTES = 64 * 2**10
LINGER_S = 5.0
STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
NEVER_AWAITED = asyncio.Event()
LAST_CHUNK = b"0\r\n\r\n"


class HotProtocol(HttpToolsProtocol):
    """One connection. The gateway is the ASGI application that uvicorn was given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gateway: Gateway = self.config.app  # type: ignore[assignment]  # uvicorn's type is wider
        self.active: SocketExchange | None = None
        self._fresh: SocketExchange | None = None
        self.idle_since: float | None = None
        self._usual: list[tuple[bytes, bytes]] = []
        self._usual_lines = b""
        self._head_bytes = 0
        self._in_head = True
        self._unread: asyncio.TimerHandle | None = None
        self._unread_bytes = 0
        self._slow: asyncio.TimerHandle | None = None
        self._lingers = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._slow = self.loop.call_later(self.gateway.config.gateway.receive_timeout_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._unread, self._slow):
            if timer:
                timer.cancel()
        self._count_unread(0)
        super().connection_lost(exc)
        if self.active and not self.active.response_complete:
            self.active.leave()

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            return
        was_in_head = self._in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            return self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            self._begin()
            return self._refuse(400, None, "this is not HTTP/1.1 as RFC 9112 has it; the connection is closed")
        if self._fresh:
            self._begin()
        if self._in_head and self.parser is not None:
            self._head_bytes += len(data) if was_in_head else 0  # else it began somewhere in this read
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(431, "request_header_fields_too_large", f"the head is larger than {MAX_HEAD_BYTES} bytes")
            elif self._slow is None:
                self._slow = self.loop.call_later(self.gateway.config.gateway.receive_timeout_s, self._too_slow)

    def _decline(self, rest: bytes) -> None:
        """The client offers another protocol, as Java's does with its first request: an answer in HTTP/1.1 declines it
        (RFC 9110, section 7.8). The parser stops at such a head; what follows is the body all the same."""
        framing = [line for line in self.headers if line[0] in (b"content-length", b"transfer-encoding")]
        self.parser = httptools.HttpRequestParser(self)
        if isinstance(self.cycle, SocketExchange) and framing:
            self.cycle.unfed()
            self.parser = httptools.HttpRequestParser(Rest(self))
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join([b"%b: %b\r\n" % line for line in framing]))
        if rest:
            self.data_received(rest)
        else:
            self._begin()

    def on_message_begin(self) -> None:
        self.idle_since = None
        self._in_head = True
        self._head_bytes = 0
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._slow:
            self._slow.cancel()
            self._slow = None
        path = self.gateway.hot_paths.get(self.url) or self.gateway.hot_paths.get(self.url.partition(b"?")[0])
        if path is None or self.parser.get_method() != b"POST":
            return self._to_asgi()
        version = self.parser.get_http_version()
        before = self.cycle
        exchange = SocketExchange(self, path, dict(self.headers), version, self.parser.should_keep_alive())
        self.cycle = exchange  # type: ignore[assignment]  # it has what uvicorn asks of one
        if before is None or before.response_complete:
            self._run(exchange)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _to_asgi(self) -> None:
        """What uvicorn prepares when a message begins, now that it is known to be its own."""
        url, headers = self.url, self.headers
        expect = any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers)
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if isinstance(cycle, SocketExchange):
            self._run(cycle)
            self.loop.call_soon(self._begin)  # or a thousand in one read would be served within each other
        else:
            super()._start_asgi_task(cycle, app)

    def _run(self, exchange: "SocketExchange") -> None:
        """It is begun when the read is through that brought its head: most often it brings the body, too. One behind
        another begins when that is answered."""
        self.active = self._fresh = exchange

    def _begin(self) -> None:
        exchange, self._fresh = self._fresh, None
        if exchange:
            task = self.gateway.take(exchange)
            if task:
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)

    def on_body(self, body: bytes) -> None:
        if isinstance(self.cycle, SocketExchange):
            if not self.cycle.response_complete:
                self.cycle.feed(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if isinstance(self.cycle, SocketExchange):
            self.cycle.fed()
        else:
            super().on_message_complete()

    def usual_lines(self) -> bytes:
        """The headers of every answer, which uvicorn makes anew each second."""
        headers = self.server_state.default_headers
        if headers is not self._usual:
            self._usual = headers
            self._usual_lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        return self._usual_lines

    def on_response_complete(self) -> None:
        """As uvicorn's, but for its timer: `close_idle` looks at all connections, for a timer an answer costs more."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        following = self.pipeline.pop() if self.pipeline else None
        if not self.pipeline:  # else enough has been read
            self.flow.resume_reading()
        if following:
            self._start_asgi_task(*following)
        else:
            self.idle_since = self.loop.time()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_unread()
        if self.active and self.active.source:
            self.active.source.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._count_unread(0)
        if self._unread:
            self._unread.cancel()
            self._unread = None
        if self.active and self.active.source:
            self.active.source.resume()

    def _watch_unread(self) -> None:
        unread_bytes = self.transport.get_write_buffer_size()
        self._count_unread(unread_bytes)
        self._unread = self.loop.call_later(self.gateway.config.gateway.stall_timeout_s, self._not_read, unread_bytes)

    def _count_unread(self, unread_bytes: int) -> None:
        """Large answers that wait for their clients take room from those that are yet to come."""
        if self.gateway.stack:
            self.gateway.stack.room.take(unread_bytes - self._unread_bytes)
            self._unread_bytes = unread_bytes

    def _not_read(self, unread_bytes: int) -> None:
        """So much has waited: a client that has read nothing of it holds its place without using it."""
        if self.transport.get_write_buffer_size() < unread_bytes:
            self._watch_unread()
        else:
            self.transport.abort()

    def _too_slow(self) -> None:
        """The head has not come: such connections are cheap to open and would be kept for ever."""
        self._slow = None
        if self.cycle and not self.cycle.response_complete:  # what comes now is a next request: its turn is later
            self._slow = self.loop.call_later(self.gateway.config.gateway.receive_timeout_s, self._too_slow)
        elif not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        """Nothing after this can be understood. A request that runs gets its answer first, if its own body is whole."""
        running = self.active if self.active and not self.active.response_complete else None
        if running and running.is_whole:
            running.keep_alive = False
            self.pipeline.clear()
            self._lingers = True
            return
        if running:
            running.leave()
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = orjson.dumps({"error": error})
        head = b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (STATUS_LINES[status], len(body)) + body)
        self.linger()

    def linger(self) -> None:
        """The client may still be sending: to close at once would reset the connection before it reads the answer."""
        if self.transport.is_closing():
            return
        self._lingers = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._slow = self.loop.call_later(LINGER_S, self.transport.close)


def close_idle(connections: Iterable[Any], before: float) -> None:
    """Closes those that have been waiting for a next request since `before`, by the loop's clock."""
    for connection in list(connections):
        since = connection.idle_since if isinstance(connection, HotProtocol) else None
        if since is not None and since < before:
            connection.transport.close()


class Rest:
    """Reads the body of a request whose head another parser has read."""

    def __init__(self, protocol: HotProtocol) -> None:
        self.on_body = protocol.on_body
        self._protocol = protocol

    def on_message_complete(self) -> None:
        self._protocol.parser = httptools.HttpRequestParser(self._protocol)
        self._protocol.on_message_complete()


class Gone(asyncio.Transport):
    """Where answers go whose client has left, until who writes them has heard of it: uvloop's transports raise."""

    def write(self, data: object) -> None: ...

    def close(self) -> None: ...


GONE = Gone()


class SocketExchange(Exchange):
    """An exchange written to its connection directly. The plain attributes are what uvicorn asks of its own cycles."""

    def __init__(
        self, protocol: HotProtocol, path: str, headers: Mapping[bytes, bytes], version: str, keep_alive: bool
    ) -> None:
        super().__init__("POST", path, headers)
        self.disconnected = False
        self.keep_alive = keep_alive and version != "1.0"
        self.message_event = NEVER_AWAITED
        self._protocol = protocol
        self._transport = protocol.transport
        self._chunked = version != "1.0"

    def leave(self) -> None:
        self._transport = GONE
        super().leave()

    def wanted(self) -> None:
        if b"expect" in self.headers and not self._pieces:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        self._transport.write(self._head(status, headers, b"content-length: %d\r\n" % len(body)) + body)
        self._complete()

    def start(self, status: int, headers: Headers) -> None:
        self._transport.write(self._head(status, headers, b"transfer-encoding: chunked\r\n" if self._chunked else b""))

    def write(self, piece: bytes) -> None:
        if self._chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        self._transport.write(piece)
        if self._protocol.flow.write_paused and self.source:
            self.source.pause()

    def end(self, piece: bytes = b"") -> None:
        if self._chunked:
            piece = b"%x\r\n%b\r\n0\r\n\r\n" % (len(piece), piece) if piece else LAST_CHUNK
        self._transport.write(piece)
        self._complete()

    async def drained(self) -> None:
        if self._protocol.flow.write_paused:
            await self._protocol.flow.drain()

    def _head(self, status: int, headers: Headers, framing: bytes) -> bytes:
        self.status = status
        self.first_byte_at = time.perf_counter()
        lines = [STATUS_LINES[status], self._protocol.usual_lines()]
        for name, value in (*self.marks, *headers) if self.marks else headers:
            if name == b"connection":
                self.keep_alive = False
            else:
                lines.append(b"%b: %b\r\n" % (name, value))
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"x-request-id: %b\r\n%b\r\n" % (self.request_id.encode(), framing))
        return b"".join(lines)

    def _complete(self) -> None:
        self.response_complete = True
        self.source = None
        if not self.keep_alive:
            if self._whole:
                self._transport.close()
            else:
                self._protocol.linger()
        self._protocol.on_response_complete()
