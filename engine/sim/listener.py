"""Where a simulated engine is reached: an address that can be left and come back to."""

import asyncio
import os
from collections.abc import Callable, MutableSet
from contextlib import suppress
from pathlib import Path

from engine.sim.connection import Connection

BACKLOG = 4096


class Listener:
    """Closed and opened again, it is an engine that was killed and came back."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        connections: MutableSet[Connection],
        host: str,
        port: int,
        uds: Path | str | None,
    ) -> None:
        """`connect` makes a connection's protocol; `connections` are those that are open."""
        self.connect = connect
        self.connections = connections
        self.host = host
        self.port = port
        self.uds = str(uds) if uds else None
        self.server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix:{self.uds}" if self.uds else f"http://{host}:{self.port}"

    async def open(self) -> None:
        """Raises OSError. A port of 0 becomes a free one, and stays the same from then on."""
        loop = asyncio.get_running_loop()
        if self.uds:
            self.server = await loop.create_unix_server(self.connect, self.uds, backlog=BACKLOG)
            return
        self.server = await loop.create_server(self.connect, self.host, self.port, backlog=BACKLOG)
        self.port = self.server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Nobody is accepted any more, and every connection is reset."""
        if self.server is None:
            return
        self.server.close()
        self.server = None
        await asyncio.sleep(0)  # for those that were just accepted
        while self.connections:
            for connection in list(self.connections):
                connection.reset()
            await asyncio.sleep(0)
        if self.uds:
            with suppress(FileNotFoundError):
                os.unlink(self.uds)
