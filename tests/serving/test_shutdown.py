"""A gateway at work is asked to end: readiness first, then the drain, then status 0. One process, and several."""

import json
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import httpx2
import pytest

from tests.conftest import Served, arguments, children, free_port, running

PENSTOCK = str(Path(sys.executable).parent / "penstock")
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
STREAMS = 6

Start = Callable[..., AbstractContextManager[Served]]


@pytest.fixture(params=[1, 2])
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Start:
    """Starts a gateway that says a word every `pace_s`."""

    def start(pace_s: float, **gateway: float) -> AbstractContextManager[Served]:
        port = free_port()
        env = {f"PENSTOCK_GATEWAY__{name.upper()}": str(value) for name, value in gateway.items()}
        env["PENSTOCK_ENGINES__SCRIPTED__OPTIONS"] = json.dumps({"pace_s": pace_s})
        command = [PENSTOCK, "serve", "--engine", "scripted", "--port", str(port), "--workers", str(request.param)]
        return running(command, port, tmp_path, **env)

    return start


class Streams:
    """Several streams of 50 words, each on a connection and a thread of its own."""

    def __init__(self, served: Served, path: str = CHAT, **headers: str) -> None:
        self.served = served
        self.path = path
        self.headers = headers
        self.begun = 0
        self._threads = ThreadPoolExecutor(STREAMS)

    def __enter__(self) -> list[Future[list[str]]]:
        """Once all of them have said something."""
        lines = [self._threads.submit(self._read) for _ in range(STREAMS)]
        until(lambda: self.begun == STREAMS, "the streams did not begin")
        return lines

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def _read(self) -> list[str]:
        turns = [{"role": "user", "content": "word " * 50}]
        body = {"model": "scripted", "stream": True, "messages" if self.path == CHAT else "input": turns}
        url = f"{self.served.url}{self.path}"
        with httpx2.stream("POST", url, json=body, headers=self.headers, timeout=30, trust_env=False) as answer:
            lines = answer.iter_lines()
            said = [next(lines)]
            self.begun += 1
            return [*said, *(line for line in lines if line)]


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 15
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def refused(served: Served) -> bool:
    try:
        httpx2.get(f"{served.url}/health", trust_env=False)
    except httpx2.ConnectError:
        return True
    except httpx2.TransportError:  # accepted by the kernel just before the listening socket closed
        return False
    return False


def closed(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_readiness_goes_first_and_requests_go_on_for_a_while(serve: Start) -> None:
    with serve(0.0, ready_delay_s=2) as served, ExitStack() as stack:
        kept = [stack.enter_context(httpx2.Client(base_url=served.url, trust_env=False)) for _ in range(8)]
        assert {client.get("/ready").status_code for client in kept} == {200}
        served.process.send_signal(signal.SIGTERM)
        until(lambda: {client.get("/ready").status_code for client in kept} == {503}, "it is still ready")
        body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
        assert httpx2.post(f"{served.url}{CHAT}", json=body, trust_env=False).status_code == 200
        assert httpx2.get(f"{served.url}/health", trust_env=False).status_code == 200
        assert served.process.wait(20) == 0


def test_running_streams_end_while_idle_connections_close_and_new_ones_are_refused(serve: Start) -> None:
    with serve(0.05) as served, Streams(served) as lines:
        idle = socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])))
        served.process.send_signal(signal.SIGTERM)
        until(lambda: refused(served), "new connections are still taken")
        until(lambda: closed(idle), "an idle connection stays open")
        assert not any(each.done() for each in lines)
        assert {each.result()[-1] for each in lines} == {"data: [DONE]"}
        assert served.process.wait(20) == 0
        idle.close()


def test_a_stream_that_outlasts_the_drain_ends_in_an_error_event(serve: Start) -> None:
    with (
        serve(0.5, shutdown_s=0.5) as served,
        Streams(served) as lines,
        Streams(served, RESPONSES) as responses,
        Streams(served, RESPONSES, **{"idempotency-key": "one"}) as shared,
    ):
        served.process.send_signal(signal.SIGTERM)
        for each in [*responses, *shared]:
            events = [json.loads(line.removeprefix("data: ")) for line in each.result() if line.startswith("data: ")]
            assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]
            assert [event["sequence_number"] for event in events] == [*range(len(events))]
            assert "shutting down" in events[-1]["message"]
            assert events[-2]["response"]["error"]["message"] == events[-1]["message"]
        for each in lines:
            last = json.loads(each.result()[-1].removeprefix("data: "))
            assert "shutting down" in last["error"]["message"]
        assert served.process.wait(20) == 0


def test_a_second_interrupt_ends_it_at_once(serve: Start) -> None:
    with serve(1.0) as served, Streams(served) as lines:
        processes = [served.process.pid, *children(served.process.pid)]
        served.process.send_signal(signal.SIGINT)
        until(lambda: refused(served), "new connections are still taken")
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(15) == 128 + signal.SIGINT
        until(lambda: not any("serving.worker" in arguments(pid) for pid in processes), "a worker is left")
        assert all(isinstance(each.exception(), httpx2.TransportError) for each in lines)
