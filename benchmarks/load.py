"""Requests against one address, counted and timed: `python -m benchmarks.load http://127.0.0.1:8000 --bodies FILE`.

A process of its own, so that its cost stays on its own core. It prints one line of JSON, a `Load`. The CPU time of
the watched processes is read here, at both ends of the very seconds in which answers are counted.
"""

import asyncio
import gc
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
import uvloop

from benchmarks.client import Client, Requests, Tally
from benchmarks.processes import busy_s, cpu_s, resident_bytes, tree

POLL_S = 0.02
GIVE_UP_S = 900
START_SPREAD_S = 0.05  # streams that start together would stay in step


@dataclass
class Load:
    """What was counted, and the CPU seconds of the watched processes, of this one, and of everybody."""

    wall_s: float
    completed: int
    events: int
    errors: dict[str, int]
    latency_s: list[float]
    first_token_s: list[float]
    watched_cpu_s: list[float]
    own_cpu_s: float
    busy_s: float
    resident_bytes: list[int] = field(default_factory=list)


@dataclass
class Clock:
    """Where the clocks stand."""

    watched: Sequence[int]

    def __post_init__(self) -> None:
        self.watched_cpu_s = [cpu_s(tree(pid)) for pid in self.watched]
        self.own_cpu_s = time.process_time()
        self.busy_s = busy_s(range(os.cpu_count() or 1))
        self.wall_s = time.perf_counter()


class Crowd:
    """Clients on keep-alive connections, who ask `limit` times in all."""

    def __init__(self, url: str, requests: Requests, tally: Tally, limit: float) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.requests = requests
        self.tally = tally
        self.left = limit
        self.idle: deque[Client] = deque()
        self.running: set[asyncio.Task[None]] = set()

    async def closed_loop(self, clients: int) -> None:
        """Whoever has its answer asks again."""
        for _ in range(clients):
            self.once_more(None)
            await asyncio.sleep(START_SPREAD_S / clients)

    def once_more(self, client: Client | None) -> None:
        if self.left <= 0:
            return
        self.left -= 1
        if client and client.transport:
            client.ask()
        else:
            self.start(self.connect_and_ask(self.once_more))

    async def open_loop(self, rate: float) -> None:
        """`rate` requests a second, however long the answers take; timed from when each was due."""
        began = time.perf_counter()
        sent = 0
        while self.left > 0:
            self.left -= 1
            due = began + sent / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            while self.idle and not self.idle[0].transport:
                self.idle.popleft()
            if self.idle:
                self.idle.popleft().ask(due)
            else:
                self.start(self.connect_and_ask(self.idle.append, due))
            sent += 1

    async def connect_and_ask(self, done: Callable[[Client], None], due: float | None = None) -> None:
        def client() -> Client:
            return Client(self.requests, self.tally, done)

        try:
            _, connected = await asyncio.get_running_loop().create_connection(client, self.host, self.port)
        except OSError as error:
            self.tally.errors[f"no connection: {error.strerror}"] += 1
        else:
            connected.ask(due)

    def start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.running.add(task)
        task.add_done_callback(self.running.discard)


async def measured(
    crowd: Crowd, watched: Sequence[int], clients: int, rate: float, warm_s: float, seconds: float
) -> Load:
    """Counts for `seconds`, after `warm_s` that do not count."""
    crowd.start(crowd.open_loop(rate) if rate else crowd.closed_loop(clients))
    await asyncio.sleep(warm_s)
    before = Clock(watched)
    crowd.tally.clear()
    await asyncio.sleep(seconds)
    return summed(crowd, before, Clock(watched))


async def counted(crowd: Crowd, watched: Sequence[int], clients: int) -> Load:
    """Until the crowd has asked as often as it may; looks at the first watched process's memory at each quarter."""
    requests = crowd.left
    before = Clock(watched)
    resident = [resident_bytes(tree(watched[0]))] if watched else []
    crowd.start(crowd.closed_loop(clients))
    for quarter in range(1, 5):
        while crowd.tally.completed + crowd.tally.errors.total() < requests * quarter / 4:
            await asyncio.sleep(POLL_S)
            if time.perf_counter() - before.wall_s > GIVE_UP_S:
                raise SystemExit(f"only {crowd.tally.completed} of {requests} requests in {GIVE_UP_S} s")
        if watched:
            resident.append(resident_bytes(tree(watched[0])))
    load = summed(crowd, before, Clock(watched))
    load.resident_bytes = resident
    return load


def summed(crowd: Crowd, before: Clock, after: Clock) -> Load:
    crowd.left = 0
    tally = crowd.tally
    return Load(
        wall_s=after.wall_s - before.wall_s,
        completed=tally.completed,
        events=tally.events,
        errors=dict(tally.errors),
        latency_s=[round(taken, 6) for taken in tally.latency_s],
        first_token_s=[round(taken, 6) for taken in tally.first_token_s],
        watched_cpu_s=[late - early for early, late in zip(before.watched_cpu_s, after.watched_cpu_s, strict=True)],
        own_cpu_s=after.own_cpu_s - before.own_cpu_s,
        busy_s=after.busy_s - before.busy_s,
    )


def main(
    url: str,
    bodies: Annotated[Path, typer.Option(help="A JSON body on each line; 000000000000 becomes the request's number")],
    keys: Annotated[Path | None, typer.Option(help="API keys, one a line, sent in turn")] = None,
    stream: bool = False,
    events: Annotated[int, typer.Option(help="How many events each stream must have; 0: as many as it likes")] = 0,
    clients: int = 32,
    rate: Annotated[float, typer.Option(help="Requests a second in an open loop, instead of clients in a closed")] = 0,
    warm_s: float = 1,
    seconds: float = 3,
    requests: Annotated[int, typer.Option(help="Go on for so many requests, instead of seconds")] = 0,
    times: Annotated[bool, typer.Option(help="Print how long each answer took, too")] = False,
    watch: Annotated[list[int] | None, typer.Option(help="Processes whose CPU time is asked for")] = None,
) -> None:
    """Prints what was counted."""
    given = Requests(urlsplit(url).netloc, bodies.read_bytes().splitlines(), stream, events)
    if keys:
        given = replace(given, keys=keys.read_bytes().splitlines())

    async def run() -> Load:
        gc.disable()  # what clients leave behind is freed by its count of references
        crowd = Crowd(url, given, Tally(times), requests or math.inf)
        if requests:
            return await counted(crowd, watch or [], clients)
        return await measured(crowd, watch or [], clients, rate, warm_s, seconds)

    typer.echo(json.dumps(asdict(uvloop.run(run()))))


if __name__ == "__main__":
    typer.run(main)
