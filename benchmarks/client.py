"""One keep-alive connection that asks and takes the time, as lean as Python allows: the load generator's hands."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import cast

import httptools

NUMBER = b"000000000000"  # where a body has it, every request's own number stands
EVENT = b"data: "


@dataclass
class Tally:
    """What was answered since the last `clear`; how long each answer took if `times`."""

    times: bool
    completed: int = 0
    events: int = 0
    latency_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        self.completed = self.events = 0
        self.latency_s.clear()
        self.first_token_s.clear()
        self.errors.clear()


@dataclass
class Requests:
    """What is sent: `bodies` and `keys` in turn. `events` is how many each stream must have; 0: as many as it likes."""

    host: str
    bodies: list[bytes]
    stream: bool = False
    events: int = 0
    keys: Sequence[bytes] = (b"sk-none-at-all-0123",)
    numbers: "count[int]" = field(default_factory=count)

    def __post_init__(self) -> None:
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nAccept: application/json\r\n"
            b"Content-Type: application/json\r\nUser-Agent: OpenAI/Python 3.54.0\r\n"
            b"Authorization: Bearer %s\r\nContent-Length: "
        )
        self.heads = [head % (self.host.encode(), key) for key in self.keys]

    def next(self) -> bytes:
        number = next(self.numbers)
        body = self.bodies[number % len(self.bodies)].replace(NUMBER, b"%012d" % number)
        return b"%s%d\r\n\r\n%s" % (self.heads[number % len(self.heads)], len(body), body)


class Client(asyncio.Protocol):
    """`done(client)` is called after each answer, whole or not; a client without `transport` has lost its connection.

    httptools calls only what is defined here.
    """

    def __init__(self, requests: Requests, tally: Tally, done: Callable[["Client"], None]) -> None:
        self.requests = requests
        self.tally = tally
        self.done = done
        self.transport: asyncio.Transport | None = None
        self.is_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self.parser = httptools.HttpResponseParser(self)

    def ask(self, due: float | None = None) -> None:
        """`due`: when it should have been sent, in an open loop, on time.perf_counter's clock."""
        assert self.transport
        self.is_waiting = True
        self.began = due or time.perf_counter()
        self.first_token: float | None = None
        self.pieces: list[bytes] = []
        self.events = 0
        self.transport.write(self.requests.next())

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.end(f"malformed answer: {error}")

    def on_body(self, data: bytes) -> None:
        self.pieces.append(data)
        if self.requests.stream:
            found = data.count(EVENT)
            self.events += found
            self.tally.events += found
            if self.first_token is None and self.events > 1:  # the first event has only the role
                self.first_token = time.perf_counter()

    def on_message_complete(self) -> None:
        if not self.parser.should_keep_alive():
            self.close()
        self.end(self.wrong())

    def wrong(self) -> str:
        """What is wrong with the answer; empty if nothing is."""
        body = b"".join(self.pieces)
        if self.parser.get_status_code() != 200:
            return f"status {self.parser.get_status_code()}"
        if self.requests.stream:
            whole = body.endswith(b"[DONE]\n\n") and self.requests.events in (0, body.count(EVENT))
        else:
            whole = body.endswith(b"}")
        return "" if whole else "an answer that is not whole"

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.is_waiting:
            self.end(f"connection lost: {error or 'closed'}")

    def close(self) -> None:
        if self.transport:
            self.transport.close()
        self.transport = None

    def end(self, wrong: str) -> None:
        self.is_waiting = False
        if wrong:
            self.tally.errors[wrong] += 1
            self.close()
        else:
            self.tally.completed += 1
            if self.tally.times:
                self.tally.latency_s.append(time.perf_counter() - self.began)
                self.tally.first_token_s += [self.first_token - self.began] if self.first_token else []
        self.done(self)
