"""A server whose every byte the test decides: the engine, as it misbehaves."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

Say = Callable[[asyncio.StreamWriter], Awaitable[None]]
MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'


@dataclass
class Upstream:
    """`say` writes what follows a POST; `bodies` keeps what was sent, `closed` is set when a client goes away."""

    url: str
    bodies: list[bytes] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def upstream(say: Say) -> AsyncIterator[Upstream]:
    """Listens on 127.0.0.1 for as long as the block runs; GET /v1/models is always answered properly."""
    here = Upstream("")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    writer.write(whole(200, MODELS))
                    continue
                here.heads.append(head)
                here.bodies.append(await reader.readexactly(length_of(head)))
                watch = asyncio.create_task(reader.read(1))
                talk = asyncio.create_task(talk_and_drain(writer))
                await asyncio.wait([watch, talk], return_when=asyncio.FIRST_COMPLETED)
                if not talk.done() or talk.exception():  # the client went away before all was said
                    here.closed.set()
                talk.cancel()
                watch.cancel()
                return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def talk_and_drain(writer: asyncio.StreamWriter) -> None:
        await say(writer)
        await writer.drain()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    here.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield here
    finally:
        server.close()


def length_of(head: bytes) -> int:
    lines = head.lower().split(b"\r\n")
    return int(next(line.partition(b":")[2] for line in lines if line.startswith(b"content-length")))


def whole(status: int, body: bytes, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%scontent-length: %d\r\n\r\n%s" % (
        status, headers, len(body), body,
    )  # fmt: skip


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def answers(status: int, body: bytes, headers: bytes = b"") -> Say:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(whole(status, body, headers))

    return say


def streams(*pieces: bytes, cut: bool = False, pace_s: float = 0.0, hang: bool = False) -> Say:
    """Sends the pieces as chunks; then the proper end, or (`cut`) a closed connection, or (`hang`) nothing."""

    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for piece in pieces:
            await asyncio.sleep(pace_s)
            writer.write(chunked(piece))
            await writer.drain()
        if hang:
            await asyncio.sleep(60)
        if not cut:
            writer.write(STREAM_END)

    return say


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


@contextmanager
def swallowing(port: int) -> Iterator[None]:
    """Packets to this port are dropped: the kernel answers no SYN while a listener's queue is full."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", port), backlog=0))
        for _ in range(3):
            filler = opened.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield
