"""One process's HTTP server, from the listening socket to the end of its last request.

The order of a shutdown: /ready answers 503, and for `gateway.ready_delay_s` everything goes on as before, so that a
load balancer can notice; new connections are refused and idle ones closed; running requests may end within
`gateway.shutdown_s`, and those that outlast it end in an error event.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from penstock import config
from penstock.errors import StartError
from serving.app import Gateway
from serving.protocol import HotProtocol, close_idle

BACKLOG = 2048
KEEP_ALIVE_S = 75
# uvicorn's own deadline comes after ours, for a client that does not read its error event.
TICKS_A_SECOND = 10
FORCED_AFTER_S = 5
# A request leaves next to nothing that only the collector can free, so it need not look every 700 objects; 50,000 of
# them are a few megabytes.
GC_THRESHOLDS = (50_000, 20, 50)


@dataclass(frozen=True)
class Drain:
    """How a shutdown goes: `delay_s` with /ready alone saying so, then `patience_s` for what still runs."""

    delay_s: float = 0.0
    patience_s: float = 0.0


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """The listening socket, before anything slow has been started; `shared` with the other workers of one parent.

    Raises StartError.
    """
    listener = bound(host, port, shared=shared)
    listener.listen(BACKLOG)
    return listener


def bound(host: str, port: int, *, shared: bool) -> socket.socket:
    """Has the port without listening. Raises StartError."""
    holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        holder.bind((host, port))
    except OSError as error:
        holder.close()
        raise StartError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --host and --port"
        ) from error
    return holder


async def serve(gateway: Gateway, listener: socket.socket, stop: asyncio.Future[Drain]) -> None:
    """Answers on `listener` until `stop` is done, then drains."""
    server = Server(
        uvicorn.Config(
            gateway,
            http=HotProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
    )
    async with asyncio.TaskGroup() as tasks:
        http = tasks.create_task(server.serve(sockets=[listener]))
        either: list[asyncio.Future[Any]] = [stop, http]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            drain = stop.result()
            gateway.draining = True
            server.config.timeout_graceful_shutdown = round(drain.patience_s) + FORCED_AFTER_S
            await asyncio.wait([http], timeout=drain.delay_s)
            asyncio.get_running_loop().call_later(drain.patience_s, gateway.end_requests)
        server.should_exit = True


class Server(uvicorn.Server):
    """uvicorn's, with the signals left to us: its own handler would end the process by the signal, not with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % TICKS_A_SECOND == 0:
            idle_before = asyncio.get_running_loop().time() - self.config.timeout_keep_alive
            close_idle(self.server_state.connections, idle_before)
        return await super().on_tick(counter)


async def told_to_stop(limits: Callable[[], config.Gateway], failed: asyncio.Future[None]) -> Drain:
    """Returns on SIGTERM or SIGINT, or when an engine has failed for good: then nothing is worth waiting for.
    `limits` are asked for in the end, since they may have changed."""
    signals = asyncio.create_task(signalled())
    try:
        await asyncio.wait([signals, failed], return_when=asyncio.FIRST_COMPLETED)
    finally:
        signals.cancel()
    return Drain() if failed.done() else Drain(limits().ready_delay_s, limits().shutdown_s)


async def signalled() -> None:
    """Returns on SIGTERM or SIGINT; a second SIGINT ends the process at once, and the kernel ends its children."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    loop.add_signal_handler(signal.SIGINT, os._exit, 128 + signal.SIGINT)


def settle() -> None:
    """To be called once, when everything that stays has been made: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
