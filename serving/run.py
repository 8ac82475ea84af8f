"""The gateway as a command: takes the port, starts the engines, says when it is ready, ends on SIGTERM."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import partial

import uvloop

from penstock.config import Config, WrongAt
from penstock.source import Source
from serving import workers
from serving.admission import check_shared
from serving.app import Gateway
from serving.compositions import check
from serving.engines import engines_here
from serving.hosts import Alone, followed
from serving.keys import Keys
from serving.reload import Reload
from serving.server import bind, serve, settle, told_to_stop
from serving.stack import Stack, composed
from serving.state import governed

CURL = """curl http://{address}/v1/chat/completions -H 'Content-Type: application/json'{key} \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What can you do?"}}]}}'"""


def run(config: Config, source: Source, say: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT. `config` is what `source` was found to say, and is followed there; `say` prints
    for a person. Raises StartError."""
    check_shared(config)
    try:
        check(config)
    except WrongAt as error:
        raise source.wrong(error) from error
    host, port = config.gateway.host, config.gateway.port
    if config.gateway.workers > 1:
        with workers.hold(host, port) as holder:
            address = holder.getsockname()[:2]
            ready = partial(announce, config, address=address, say=say)
            uvloop.run(workers.serve(config, source, address, ready))
    else:
        with bind(host, port) as listener:
            uvloop.run(serve_alone(config, source, listener, say))


async def serve_alone(config: Config, source: Source, listener: socket.socket, say: Callable[[str], None]) -> None:
    """Everything in this process."""
    address = listener.getsockname()[:2]
    async with governed(config, address) as state:
        gateway = Gateway(config, state.keys, state.ledger)
        async with (
            engines_here(config) as engines,
            composed(config, engines.replicas, engines.failed, engines.versions) as stack,
            followed(config, state.store, engines, Alone(stack, engines, gateway.apply)) as moving,
            gateway.admission,
            asyncio.TaskGroup() as tasks,
        ):
            gateway.stack = stack
            state.trials.joined(stack)

            stop = tasks.create_task(told_to_stop(lambda: gateway.config.gateway, stack.failed))
            reloading = tasks.create_task(Reload(source, config, moving.apply, state.moved, moving.prepare).run())
            starting = tasks.create_task(started(stack, lambda: announce(config, state.keys, address, say)))
            try:
                await serve(gateway, listener, stop)
            finally:
                for task in (stop, reloading, starting):
                    task.cancel()
    if stack.failed.done():
        stack.failed.result()


async def started(stack: Stack, tell: Callable[[], None]) -> None:
    await stack.until_ready()
    settle()
    tell()


def announce(config: Config, keys: Keys, address: tuple[str, int], say: Callable[[str], None]) -> None:
    """Tells a person, once the first answer is possible, where and what, with a command that works."""
    host, port = address
    reachable = f"[{host}]:{port}" if ":" in host else f"{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    key = " -H 'Authorization: Bearer YOUR_KEY'" if keys.needed else ""
    lines = [f"Penstock serves {', '.join(config.models)} on http://{reachable}"]
    if not keys.needed:
        lines.append("There are no keys, so only this machine is let in (`penstock keys create` makes one).")
    lines.append("Try:\n" + CURL.format(address=reachable, model=next(iter(config.models)), key=key))
    with contextlib.suppress(OSError):  # nobody reads: no reason to stop serving
        say("\n".join(lines))
