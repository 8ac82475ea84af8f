"""The gateway as a process: binds, starts the engines, says when it is ready, drains on SIGTERM.

A signal refuses new connections, closes idle ones and lets running requests end. Those that outlast
`gateway.shutdown_s` end in an error event, and the engines are stopped last, each within its `stop_s`.
"""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from penstock.config import Config
from penstock.errors import StartError
from serving.app import Gateway
from serving.protocol import HotProtocol
from serving.stack import Stack, running

BACKLOG = 2048
KEEP_ALIVE_S = 75
# uvicorn's own deadline comes after ours, for a client that does not read its error event.
FORCED_AFTER_S = 5

CURL = """curl http://{address}/v1/chat/completions -H 'Content-Type: application/json'{key} \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What can you do?"}}]}}'"""


def run(config: Config, say: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT. `say` prints for a person. Raises StartError."""
    with bind(config.gateway.host, config.gateway.port) as listener:
        uvloop.run(serve(config, listener, say))


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, before anything slow has been started."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --host and --port"
        ) from error
    listener.listen(BACKLOG)
    return listener


async def serve(config: Config, listener: socket.socket, say: Callable[[str], None]) -> None:
    gateway = Gateway(config)
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
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=round(config.gateway.shutdown_s) + FORCED_AFTER_S,
        )
    )
    address = listener.getsockname()
    async with running(config) as stack, asyncio.TaskGroup() as tasks:
        gateway.stack = stack
        http = tasks.create_task(server.serve(sockets=[listener]))
        announcing = tasks.create_task(announce(config, stack, address[:2], say))
        stop = asyncio.create_task(signalled())
        try:
            await asyncio.wait([stop, http, stack.failed], return_when=asyncio.FIRST_COMPLETED)
            gateway.draining = True
            patience_s = 0 if stack.failed.done() else config.gateway.shutdown_s
            asyncio.get_running_loop().call_later(patience_s, gateway.end_requests)
        finally:
            server.should_exit = True
            announcing.cancel()
            stop.cancel()
    if stack.failed.done():
        stack.failed.result()


class Server(uvicorn.Server):
    """uvicorn's, with the signals left to `serve`: its own handler would end the process by the signal, not with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def signalled() -> None:
    """Returns on SIGTERM or SIGINT; a second SIGINT ends the process as usual."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    loop.remove_signal_handler(signal.SIGINT)


async def announce(config: Config, stack: Stack, address: tuple[str, int], say: Callable[[str], None]) -> None:
    """Tells a person, once the first answer is possible, where and what, with a command that works."""
    await stack.until_ready()
    gc.collect()
    gc.freeze()
    host, port = address
    reachable = f"[{host}]:{port}" if ":" in host else f"{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    key = " -H 'Authorization: Bearer YOUR_KEY'" if config.gateway.keys else ""
    lines = [f"Penstock serves {', '.join(stack.models)} on http://{reachable}"]
    if not config.gateway.keys:
        lines.append("No keys are configured, so only this machine is let in (gateway.keys opens it to others).")
    lines.append("Try:\n" + CURL.format(address=reachable, model=next(iter(stack.models)), key=key))
    with contextlib.suppress(OSError):  # nobody reads: no reason to stop serving
        say("\n".join(lines))
