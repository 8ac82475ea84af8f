"""A client that believes nothing: every byte of an answer must be HTTP, UTF-8, an event and JSON, and in its place."""

import asyncio
import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self
from urllib.parse import urlsplit

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
PATIENCE_S = 30.0


@dataclass
class Said:
    """An answer, read strictly. `texts` and `finish` are by choice; `error` is what a stream or a body ended in."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    texts: dict[int, str] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    ids: set[str] = field(default_factory=set)
    done: bool = False

    @property
    def text(self) -> str:
        return self.texts.get(0, "")

    @property
    def json(self) -> Any:
        return strict_json(self.body.decode())

    @classmethod
    def read(cls, status: int, headers: Mapping[str, str], body: bytes) -> Self:
        said = cls(status, headers, body)
        if headers.get("content-type", "").startswith("text/event-stream"):
            said._read_events()
        elif status != 200:
            said.error = said.json["error"]
        return said

    def _read_events(self) -> None:
        assert self.body.endswith(b"\n\n")
        for event in self.body.decode()[:-2].split("\n\n"):
            assert not self.done, "something follows [DONE]"
            assert self.error is None, "something follows the error"
            if event.startswith(":"):
                assert "\n" not in event
            elif event == "data: [DONE]":
                self.done = True
            else:
                assert event.startswith("data: {"), event
                self._read_chunk(strict_json(event.removeprefix("data: ")))

    def _read_chunk(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            self.error = chunk["error"]
            return
        self.ids.add(chunk["id"])
        for choice in chunk["choices"]:
            index = choice["index"]
            text = choice["text"] if "text" in choice else choice["delta"].get("content")
            assert not (text and index in self.finish), "text follows its finish reason"
            self.texts[index] = self.texts.get(index, "") + (text or "")
            if choice["finish_reason"]:
                self.finish[index] = choice["finish_reason"]
        if chunk.get("usage"):
            self.usage = chunk["usage"]


class Caller:
    """One connection to a server, kept open from request to request as far as the server keeps it."""

    def __init__(self, url: str, buffer_bytes: int | None = None) -> None:
        """`buffer_bytes`: what the kernel takes in before it is read."""
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        self.buffer_bytes = buffer_bytes
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.leave()

    def leave(self) -> None:
        """At once, whatever is under way."""
        if self._writer:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def ask(self, body: Any, path: str = CHAT, headers: Mapping[str, str] | None = None) -> Said:
        """`body` is bytes as they are, or a document."""
        return await self.say(post(body, path, headers))

    async def say(self, request: bytes) -> Said:
        """Raises ConnectionError for an answer that is cut."""
        await self.send(request)
        return await self.answer()

    async def send(self, request: bytes) -> None:
        if self._reader is None or self._reader.at_eof():
            self.leave()
            self._reader, self._writer = await self._opened()
        assert self._writer
        self._writer.write(request)

    async def _opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.buffer_bytes is None:
            return await asyncio.open_connection(self.host, self.port, limit=2**20)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer_bytes)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (self.host, self.port))
        return await asyncio.open_connection(sock=connection, limit=self.buffer_bytes)

    def more(self, piece: bytes) -> None:
        """On the connection as it is, if it still is."""
        if self._writer and not self._writer.is_closing():
            self._writer.write(piece)

    async def slowly(self, piece_bytes: int, pace_s: float) -> bytes:
        """The body of an answer of known length, read piece by piece."""
        assert self._reader
        status, headers = await self.head()
        assert status == 200
        left = int(headers["content-length"])
        body = b""
        while len(body) < left:
            await asyncio.sleep(pace_s)
            async with asyncio.timeout(PATIENCE_S):
                body += await self._reader.readexactly(min(piece_bytes, left - len(body)))
        return body

    async def answer(self) -> Said:
        """The next whole answer on the connection."""
        async with asyncio.timeout(PATIENCE_S):
            status, headers = await self.head()
            body = await self.body(headers)
        if headers.get("connection") == "close":
            assert await self.until_closed() == b"", "something follows the last answer"
        return Said.read(status, headers, body)

    async def head(self) -> tuple[int, dict[str, str]]:
        assert self._reader
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError as error:
            raise ConnectionError(f"closed after {error.partial!r}") from error
        first, *lines = head[:-4].split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        return int(status), {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    async def body(self, headers: Mapping[str, str]) -> bytes:
        assert self._reader
        try:
            if headers.get("transfer-encoding") != "chunked":
                return await self._reader.readexactly(int(headers["content-length"]))
            pieces = []
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                pieces.append((await self._reader.readexactly(size + 2))[:-2])
            assert await self._reader.readexactly(2) == b"\r\n"
            return b"".join(pieces)
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("the answer is cut") from error

    async def until_closed(self) -> bytes:
        """What comes before the server closes the connection. Raises TimeoutError."""
        assert self._reader
        said = b""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionResetError):
                while piece := await self._reader.read(2**16):
                    said += piece
        self.leave()
        return said


def post(body: Any, path: str = CHAT, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a request."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{lines}content-length: {len(raw)}\r\n\r\n"
    return head.encode("latin-1") + raw


async def ask(url: str, body: Any, path: str = CHAT, headers: Mapping[str, str] | None = None) -> Said:
    """On a connection of its own."""
    async with Caller(url) as caller:
        return await caller.ask(body, path, headers)


def strict_json(text: str) -> Any:
    """Without Python's extensions to JSON."""

    def refuse(word: str) -> NoReturn:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)
