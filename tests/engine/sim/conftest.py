"""The clients of these tests; one takes down every byte the simulator sends, and how the connection ended."""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2

from engine.sim import Simulator

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "sim", "messages": [{"role": "user", "content": "Where does the river go?"}]}
STREAM: dict[str, Any] = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
SILENCE_S = 0.3
LAST_CHUNK = b"0\r\n\r\n"
CHANGES = re.compile(rb'"(id|item_id|created|created_at)":("[\w-]+"|\d+)')  # from one answer to the next


@dataclass
class Heard:
    """What came, in pieces as they came; `end`: `open` if the connection was silent but alive."""

    pieces: list[bytes] = field(default_factory=list)
    end: Literal["closed", "reset", "open"] = "open"

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def length(self) -> int | None:
        found = re.search(rb"content-length: (\d+)", self.head)
        return int(found[1]) if found else None

    @property
    def complete(self) -> bool:
        """As far as the head says, and no more than that came."""
        return len(self.body) == self.length if self.length is not None else self.body.endswith(b"\r\n" + LAST_CHUNK)

    @property
    def events(self) -> list[bytes]:
        """Each chunk, with what differs from answer to answer taken out; the last may be a part of one."""
        found, rest = [], self.body
        while rest and rest != LAST_CHUNK:
            size, _, rest = rest.partition(b"\r\n")
            found.append(CHANGES.sub(rb'"\1":0', rest[: int(size, 16)]))
            rest = rest[int(size, 16) + 2 :]
        return found


async def hear(sim: Simulator, body: Mapping[str, Any] | None, path: str = CHAT, method: str = "POST") -> Heard:
    """Sends one request and listens until the connection ends or is silent."""
    heard = Heard()
    raised: list[dict[str, Any]] = []  # by the simulator's callbacks; asyncio would only log it
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
    host, port = sim.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    raw = json.dumps(body).encode() if body is not None else b""
    writer.write(
        b"%b %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (method.encode(), path.encode(), len(raw))
    )
    writer.write(raw)
    try:
        while True:
            async with asyncio.timeout(SILENCE_S if not heard.complete else SILENCE_S / 10):
                piece = await reader.read(2**20)
            if not piece:
                heard.end = "closed"
                break
            heard.pieces.append(piece)
    except TimeoutError:
        pass
    except (ConnectionResetError, BrokenPipeError):
        heard.end = "reset"
    finally:
        writer.close()
    assert not raised
    return heard


def client_of(sim: Simulator) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=sim.url, timeout=20, trust_env=False)
