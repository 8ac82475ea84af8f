"""A simulated engine at work: in a test's own event loop, or as the process of `penstock sim`."""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from engine.sim.adapters import Adapters
from engine.sim.asked import Model
from engine.sim.cache import PrefixCache
from engine.sim.faults import Fault
from engine.sim.generation import Speed
from engine.sim.scheduler import Scheduler
from engine.sim.simulator import Simulator


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
    kept_requests: int = 1000,
    host: str = "127.0.0.1",
    port: int = 0,
    uds: Path | str | None = None,
    root: str = "",
    adapters: Path | None = None,
) -> AsyncIterator[Simulator]:
    """An engine that listens while the block runs: `async with simulator(Fault("cut", after=3), slots=4) as sim`.

    Its address is `sim.url`, `unix:/path` with `uds`. `adapters` has a folder for each adapter, made for `root`. Raises
    OSError when the address cannot be bound.
    """
    sim = Simulator(
        Model(model, mean_tokens, max_model_len, root, Adapters(adapters, root or model)),
        Speed(ttft_s, itl_s, prefill_tokens_per_s),
        Scheduler(slots, queue),
        PrefixCache(cache_blocks),
        faults,
        retry_after_s,
        keep_alive_s,
        kept_requests,
        host,
        port,
        uds,
    )
    await sim.listener.open()
    try:
        yield sim
    finally:
        await sim.listener.close()


def serve(say: Callable[[str], None], *faults: Fault, **options: Any) -> None:
    """The process of `penstock sim`: `say`s its address once it listens, ends at SIGTERM or SIGINT. Raises OSError.

    `options` are those of `simulator`.
    """

    import uvloop

    async def until_told() -> None:
        told = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, told.set)
        async with simulator(*faults, kept_requests=0, **options) as sim:
            say(f"Simulating {sim.model.name} at {sim.url}")
            await told.wait()

    gc.freeze()
    uvloop.run(until_told())
