"""One engine's connections, against a server whose every byte is the test's."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from engine.connection import Client, Connection
from penstock.errors import EngineError

pytestmark = pytest.mark.anyio

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Sink:
    """Keeps what it is told; `on_data` is called with each piece."""

    def __init__(self, on_data: Callable[[], None] = lambda: None) -> None:
        self.on_data = on_data
        self.data = b""
        self.end: asyncio.Future[EngineError | None] = asyncio.get_running_loop().create_future()

    def answered(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self.status = status

    def received(self, data: bytes) -> None:
        self.data += data
        self.on_data()

    def ended(self) -> None:
        self.end.set_result(None)

    def broke(self, error: EngineError) -> None:
        self.end.set_result(error)


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[Client]:
    """A client of a server that answers the first request with the first of these, each in one piece."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield client
    finally:
        client.close()
        server.close()


async def asked(client: Client, connection: Connection | None = None, sink: Sink | None = None) -> Sink:
    sink = sink or Sink()
    connection = connection or await client.connect()
    connection.send(client.request("GET", "/"), sink)
    async with asyncio.timeout(5):
        await sink.end
    return sink


async def test_a_connection_is_kept_after_a_whole_answer() -> None:
    async with answering(ANSWER, ANSWER) as client:
        await asked(client)
        kept = client.idle()
        assert kept
        sink = await asked(client, kept)
    assert (sink.data, sink.end.result()) == (b"hello", None)


async def test_a_connection_that_was_asked_to_pause_is_not_kept() -> None:
    async with answering(ANSWER) as client:
        connection = await client.connect()
        await asked(client, connection, Sink(connection.pause))
        assert client.idle() is None


@pytest.mark.parametrize("more", [b"H", b"HTTP/1.1 200 OK\r\n", ANSWER, b"more"])
async def test_more_than_was_asked_for_is_no_answer(more: bytes) -> None:
    async with answering(ANSWER + more) as client:
        sink = await asked(client)
        assert isinstance(sink.end.result(), EngineError)
        assert client.idle() is None


@pytest.mark.parametrize("lines", [[b"x: " + b"a" * 70_000], [b"x-%d: %s" % (n, b"a" * 1000) for n in range(70)]])
async def test_a_head_that_is_too_large_is_no_answer(lines: list[bytes]) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(line + b"\r\n" for line in lines)
    async with answering(head + b"content-length: 5\r\n\r\nhello") as client:
        assert isinstance((await asked(client)).end.result(), EngineError)


async def test_what_is_said_before_the_answer_is_passed_by() -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    async with answering(early + ANSWER) as client:
        sink = await asked(client)
    assert (sink.status, sink.data, sink.end.result()) == (200, b"hello", None)
