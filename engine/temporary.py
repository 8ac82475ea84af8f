"""An engine for as long as something is asked of it: started, ready, drained, ended, whatever happens between."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from engine.launch import Launch, normalised, plan
from engine.machine import Machine
from engine.replica import Replica
from engine.supervisor import Supervisor
from penstock.config import Engine
from penstock.errors import StartError
from penstock.home import run_dir

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""As vLLM's --max-lora-rank takes them."""
READY_POLL_S = 0.05


def with_adapters(engine: Engine, adapters: Mapping[str, Path]) -> Engine:
    """The same with LoRA adapters, by the names that they are asked for. Raises StartError for one that has no rank or
    too high a one."""
    if not adapters:
        return engine
    highest = max(map(rank, adapters.values()))
    fitting = next((each for each in RANKS if each >= highest), None)
    if fitting is None:
        raise StartError(f"an adapter has rank {highest}; vLLM serves ranks up to {RANKS[-1]}")
    modules = [json.dumps({"name": name, "path": str(path)}) for name, path in adapters.items()]
    ours: dict[str, Any] = {"enable-lora": True, "max-loras": len(adapters), "max-lora-rank": fitting}
    options = ours | normalised(engine.options) | {"lora-modules": modules}
    return engine.model_copy(update={"options": options})


def rank(adapter: Path) -> int:
    try:
        config = json.loads((adapter / "adapter_config.json").read_bytes())
        return max(int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values()), 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartError(f"adapter_config.json of {adapter.name[:12]} tells no rank (`r`): {error}") from error


def planned(number: int, engine: Engine, served: Sequence[str], here: Machine) -> Launch:
    """Raises StartError where this machine has no engine, or the wrong one."""
    return plan(f"trial-{number}", engine, served, here, run_dir() / f"trial-{number}.sock")


@asynccontextmanager
async def temporary(launch: Launch, engine: Engine) -> AsyncIterator[Replica]:
    """Ready when it is given. Raises StartError with what to do where it does not start."""
    replica = Replica.behind(launch.name, launch.socket)
    replica.names = launch.served
    running = asyncio.create_task(Supervisor(launch, engine.probe, engine.stop_s, replica).run())
    try:
        while not replica.ready:
            if running.done():
                running.result()
            await asyncio.sleep(READY_POLL_S)
        yield replica
    finally:
        running.cancel()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # seen: whoever waited for it was told
        replica.close()
        replica.forget()
        with suppress(OSError):  # another engine of this process has its socket there
            launch.socket.parent.rmdir()
