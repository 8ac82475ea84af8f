"""A simulated engine on a socket: in the tests' own event loop, or as the process of `penstock sim`."""

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvloop

from engine.sim.asked import Model
from engine.sim.cache import PrefixCache
from engine.sim.faults import Fault
from engine.sim.generation import Speed
from engine.sim.scheduler import Scheduler
from engine.sim.simulator import Simulator

BACKLOG = 4096


class Listener:
    """Where a simulator is reached. Closed and opened again, it is an engine that was killed and came back."""

    def __init__(self, sim: Simulator, host: str, port: int, uds: Path | str | None) -> None:
        self.sim = sim
        self.host = host
        self.port = port
        self.uds = str(uds) if uds else None
        self.server: asyncio.Server | None = None

    async def open(self) -> None:
        """Raises OSError. A port of 0 becomes a free one, and stays the same from then on."""
        loop = asyncio.get_running_loop()
        if self.uds:
            self.server = await loop.create_unix_server(self.sim.connection, self.uds, backlog=BACKLOG)
            self.sim.url = f"unix:{self.uds}"
            return
        self.server = await loop.create_server(self.sim.connection, self.host, self.port, backlog=BACKLOG)
        self.port = self.server.sockets[0].getsockname()[1]
        self.sim.url = f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def close(self) -> None:
        """Nobody is accepted any more, and every connection is reset."""
        if self.server is None:
            return
        self.server.close()
        self.server = None
        for connection in list(self.sim.open):
            connection.reset()
        while self.sim.open:
            await asyncio.sleep(0)
        if self.uds:
            with suppress(FileNotFoundError):
                os.unlink(self.uds)


@asynccontextmanager
async def simulator(
    *faults: Fault,
    model: str = "sim",
    mean_tokens: int = 32,
    max_model_len: int = 32768,
    ttft_s: float = 0.0,
    itl_s: float = 0.0,
    prefill_tokens_per_s: float = 0.0,
    slots: int = 256,
    queue: int | None = None,
    cache_blocks: int = 4096,
    retry_after_s: int | None = None,
    keep_alive_s: float = 5.0,
    host: str = "127.0.0.1",
    port: int = 0,
    uds: Path | str | None = None,
) -> AsyncIterator[Simulator]:
    """An engine that listens while the block runs: `async with simulator(Fault("cut", after=3), slots=4) as sim`.

    Its address is `sim.url`, `unix:/path` with `uds`. Raises OSError when the address cannot be bound.
    """
    sim = Simulator(
        Model(model, mean_tokens, max_model_len),
        Speed(ttft_s, itl_s, prefill_tokens_per_s),
        Scheduler(slots, queue),
        PrefixCache(cache_blocks),
        faults,
        retry_after_s,
        keep_alive_s,
    )
    sim.listener = Listener(sim, host, port, uds)
    await sim.listener.open()
    try:
        yield sim
    finally:
        await sim.listener.close()


def serve(say: Callable[[str], None], *faults: Fault, **options: Any) -> None:
    """The process of `penstock sim`: `say`s its address once it listens, ends at SIGTERM or SIGINT. Raises OSError.

    `options` are those of `simulator`.
    """

    async def until_told() -> None:
        told = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, told.set)
        async with simulator(*faults, **options) as sim:
            say(f"Simulating {sim.model.name} at {sim.url}")
            await told.wait()

    gc.freeze()
    uvloop.run(until_told())
