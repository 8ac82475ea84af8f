"""Fetches media that are given by address, so that no engine has to: from public addresses alone.

A name is resolved once, and it is the addresses found then that are judged and connected to: nobody can answer
otherwise the second time. What is not 200 is no answer, a redirect neither; time and size are bounded.

There are AT_ONCE places, of which a tenant has at most OF_A_TENANT: the rest of what it wants waits behind its own,
so that one with slow servers keeps nobody else from theirs.
"""

import asyncio
import base64
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from weakref import WeakValueDictionary

import httptools

from penstock.errors import Overloaded
from serving.media import Address, Medium, address_of, refused

FETCH_S = 10.0
WAIT_S = 20.0
AT_ONCE = 16
OF_A_TENANT = 4
RETRY_AFTER_S = 5
PIECE_BYTES = 2**16
HEAD_BYTES = 2**14
MEDIA_TYPE = re.compile(r"(?:image|audio|video)/[\w.+-]{1,64}")

# What is public by its number and yet leads inside, or carries an IPv4 address that might.
NOT_PUBLIC = [
    ip_network(network)
    for network in (
        "0.0.0.0/8", "100.64.0.0/10", "168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15",
        "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23",
        "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
    )
]  # fmt: skip

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Connect = Callable[[str, Address], Awaitable[Streams]]


class CannotFetch(Exception):
    """Why not, for the caller."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet, whatever it is written in or wrapped into."""
    try:
        ip: IPv4Address | IPv6Address = ip_address(address)
    except ValueError:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in NOT_PUBLIC)


async def resolved(host: str, port: int) -> Sequence[str]:
    """The addresses of a name. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=1)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def connected(ip: str, address: Address) -> Streams:
    """A connection to this IP address, for this host's name."""
    context = trusted() if address.scheme == "https" else None
    return await asyncio.open_connection(
        ip, address.port, ssl=context, server_hostname=address.host if context else None, limit=PIECE_BYTES
    )


@lru_cache(maxsize=1)
def trusted() -> ssl.SSLContext:
    """Whom to believe; read once, since it takes milliseconds."""
    return ssl.create_default_context()


class Fetch:
    """Puts `data:` URLs in the place of addresses."""

    def __init__(self, max_bytes: int, resolve: Resolve | None = None, connect: Connect | None = None) -> None:
        """`max_bytes`: what all of a request may have together."""
        self._max_bytes = max_bytes
        self._resolve = resolve or resolved
        self._connect = connect or connected
        self._places = asyncio.Semaphore(AT_ONCE)
        self._own: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def __call__(self, media: Sequence[Medium], tenant: str) -> None:
        """All at once. Raises BadRequest for the first that cannot be had, Overloaded if one has no place in WAIT_S."""
        own = self._own.setdefault(tenant, asyncio.Semaphore(OF_A_TENANT))
        room = Room(self._max_bytes + len(media) * HEAD_BYTES)
        due = asyncio.get_running_loop().time() + WAIT_S
        try:
            async with asyncio.TaskGroup() as tasks:
                for medium in media:
                    tasks.create_task(self._in_turn(medium, room, own, due))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _in_turn(self, medium: Medium, room: "Room", own: asyncio.Semaphore, due: float) -> None:
        """With one of its tenant's places, then with one of all: nobody has more than OF_A_TENANT waiting for those."""
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout_at(due):
                    await held.enter_async_context(own)
                    await held.enter_async_context(self._places)
            except TimeoutError as error:
                raise Overloaded(
                    f"{medium.where}: too many media are being fetched; try again with fewer, or later",
                    param=medium.where,
                    retry_after_s=RETRY_AFTER_S,
                ) from error
            await self._replace(medium, room)

    async def _replace(self, medium: Medium, room: "Room") -> None:
        address = address_of(medium)
        try:
            async with asyncio.timeout(FETCH_S):
                kind, body = await self._fetched(address, room)
        except TimeoutError as error:
            raise refused(medium, f"{address.host} did not answer within {FETCH_S:g} s") from error
        except CannotFetch as error:
            raise refused(medium, f"{address.host} {error}") from error
        except (OSError, httptools.HttpParserError, UnicodeError) as error:
            raise refused(medium, f"{address.host} cannot be reached") from error
        medium.holder[medium.key] = f"data:{kind};base64,{base64.b64encode(body).decode()}"

    async def _fetched(self, address: Address, room: "Room") -> tuple[str, bytes]:
        found = await self._resolve(address.host, address.port)
        if not found or not all(map(is_public, found)):
            raise CannotFetch("is not on the public internet")
        reader, writer = await self._connect(found[0], address)
        try:
            writer.write(request_for(address))
            answer = Answer()
            while not answer.complete and (piece := await reader.read(PIECE_BYTES)):
                room.bytes -= len(piece)
                if room.bytes < 0:
                    raise CannotFetch(f"and the others have more than {self._max_bytes} bytes (policy.max_media_bytes)")
                answer.feed(piece)
            return answer.end()
        finally:
            writer.transport.abort()


@dataclass(slots=True)
class Room:
    """What may still be read, of all the answers for a request."""

    bytes: int


def request_for(address: Address) -> bytes:
    host = f"[{address.host}]" if ":" in address.host else address.host
    lines = [
        f"GET {address.path} HTTP/1.1",
        f"host: {host}:{address.port}",
        "accept: image/*, audio/*, video/*",
        "accept-encoding: identity",
        "user-agent: penstock",
        "connection: close",
    ]
    return "\r\n".join([*lines, "\r\n"]).encode("ascii")


class Answer:
    """What came, as the parser tells it. Raises CannotFetch as soon as it is none that is wanted."""

    def __init__(self) -> None:
        self.complete = False
        self._parser: Any = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._body = bytearray()
        self._why_not = ""

    def feed(self, piece: bytes) -> None:
        self._parser.feed_data(piece)
        if self._why_not:
            raise CannotFetch(self._why_not)

    def end(self) -> tuple[str, bytes]:
        """Its type and its bytes; an answer without a length ends with its connection."""
        framed = {b"content-length", b"transfer-encoding"} & self._headers.keys()
        if not self.complete and (framed or not self._headers):
            raise CannotFetch("broke off")
        return self._kind, bytes(self._body)

    @property
    def _kind(self) -> str:
        return self._headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 300 <= status < 400:
            self._why_not = "redirects, which is not followed"
        elif status != 200:
            self._why_not = f"answers {status}"
        elif not MEDIA_TYPE.fullmatch(self._kind):
            self._why_not = "answers with something that is no image, audio or video"
        elif b"content-encoding" in self._headers:
            self._why_not = "answers compressed, which was not asked for"

    def on_body(self, piece: bytes) -> None:
        self._body += piece

    def on_message_complete(self) -> None:
        self.complete = True
