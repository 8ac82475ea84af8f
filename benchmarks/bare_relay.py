"""A relay that does nothing but relay: what is left for features, in Python, on this machine.

`python -m benchmarks.bare_relay http://127.0.0.1:8001 --port 8002`. No parsing of bodies, no keys, no metrics, no
retries, no timeouts, no log, no back-pressure: not a gateway, but the floor under one that is written this way
(`asyncio.Protocol` and httptools on both sides).
"""

import asyncio
from typing import Annotated
from urllib.parse import urlsplit

import httptools
import typer
import uvloop

HEAD = b"HTTP/1.1 %d OK\r\ncontent-type: %b\r\n%b\r\n\r\n"


class Upstream(asyncio.Protocol):
    """A connection to the engine, which writes what comes to its client's."""

    def __init__(self, waiting: "list[Upstream]") -> None:
        self.waiting = waiting
        self.client: Client | None = None
        self.transport: asyncio.Transport | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.content_type = self.length = b""
        self.out: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        if self.client and self.client.transport and self.out:
            self.client.transport.write(b"".join(self.out))
            self.out.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.content_type = value
        elif name.lower() == b"content-length":
            self.length = value

    def on_headers_complete(self) -> None:
        framing = b"content-length: " + self.length if self.length else b"transfer-encoding: chunked"
        self.out.append(HEAD % (self.parser.get_status_code(), self.content_type, framing))

    def on_body(self, body: bytes) -> None:
        self.out.append(body if self.length else b"%x\r\n%b\r\n" % (len(body), body))

    def on_message_complete(self) -> None:
        if not self.length:
            self.out.append(b"0\r\n\r\n")
        self.length = b""
        self.waiting.append(self)


class Client(asyncio.Protocol):
    """A client's connection. One request at a time."""

    def __init__(self, waiting: list[Upstream], host: str, port: int) -> None:
        self.waiting, self.host, self.port = waiting, host, port
        self.transport: asyncio.Transport | None = None
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.body: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self.body)
        self.body.clear()
        head = b"%b %b HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        request = head % (self.parser.get_method(), self.url, len(body)) + body
        if self.waiting:
            self._send(self.waiting.pop(), request)
        else:
            self.connecting = asyncio.ensure_future(self._connected(request))

    async def _connected(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(lambda: Upstream(self.waiting), self.host, self.port)
        self._send(upstream, request)

    def _send(self, upstream: Upstream, request: bytes) -> None:
        assert upstream.transport
        upstream.client = self
        upstream.transport.write(request)


async def relay(upstream: str, port: int) -> None:
    parts = urlsplit(upstream)
    assert parts.hostname
    assert parts.port
    host, upstream_port = parts.hostname, parts.port
    waiting: list[Upstream] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Client(waiting, host, upstream_port), "127.0.0.1", port)
    await server.serve_forever()


def main(upstream: str, port: Annotated[int, typer.Option()] = 8002) -> None:
    uvloop.run(relay(upstream, port))


if __name__ == "__main__":
    typer.run(main)
