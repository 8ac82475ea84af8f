"""Several processes on one port: real ones, killed, stopped, asked for their sums, told about engines."""

import asyncio
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from engine.launch import Launch
from engine.replica import Replica
from engine.supervisor import Supervisor
from penstock.config import Config, Probe
from penstock.errors import StartError
from serving.engines import Engines, Generation, beside
from serving.server import Drain
from serving.workers import COMMAND, SILENT_S, Workers, hold
from tests.conftest import Served, arguments, children, free_port, running

pytestmark = pytest.mark.anyio

PENSTOCK = str(Path(sys.executable).parent / "penstock")
CHAT = "/v1/chat/completions"
ASK = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
ANSWERED = 'penstock_requests_total{model="scripted",route="/v1/chat/completions",status="200"}'


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Served]:
    port = free_port()
    command = [PENSTOCK, "serve", "--engine", "scripted", "--workers", "2", "--port", str(port)]
    with running(command, port, tmp_path) as served:
        yield served


def ask(served: Served, times: int) -> None:
    """Each on a connection of its own."""
    for _ in range(times):
        answer = httpx2.post(f"{served.url}{CHAT}", json=ASK, trust_env=False)
        assert answer.status_code == 200


def by_worker(served: Served) -> list[int]:
    """How many requests each has answered, from the log."""
    return [len(re.findall(rf'"route":"{CHAT}".*"worker":{number}\b', served.text)) for number in (1, 2)]


def fresh(served: Served, path: str) -> str:
    """An answer on a new connection, of whichever worker gets it."""
    return httpx2.get(f"{served.url}{path}", trust_env=False).text


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def within(seconds: float, true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_the_kernel_spreads_connections_and_any_worker_tells_the_sum(two: Served) -> None:
    ask(two, 40)
    within(15, lambda: sum(by_worker(two)) == 40, "not every request stands in the log")
    assert min(by_worker(two)) > 0
    for _ in range(8):
        shown = fresh(two, "/metrics")
        assert f"{ANSWERED} 40.0" in shown
        assert "penstock_processes 3.0" in shown


def test_a_killed_worker_is_replaced_and_what_it_counted_stays(two: Served) -> None:
    ask(two, 20)
    within(15, lambda: two.figure(ANSWERED) == 20, "not every request is counted")
    models = two.client.get("/v1/models").text
    descriptors = open_descriptors(two.process.pid)
    victim, other = children(two.process.pid)
    os.kill(victim, signal.SIGKILL)
    ask_until_refusals_end(two)
    within(15, lambda: two.figure("penstock_worker_restarts_total") == 1, "no worker was replaced")
    within(15, lambda: len(children(two.process.pid)) == 2, "there are not two workers again")
    assert other in children(two.process.pid)
    within(15, lambda: two.figure(ANSWERED) == 21, "what the killed worker counted is lost")
    ask(two, 10)
    within(15, lambda: two.figure(ANSWERED) == 31, "the sum does not grow")
    assert {fresh(two, "/v1/models") for _ in range(8)} == {models}
    assert open_descriptors(two.process.pid) == descriptors


def ask_until_refusals_end(served: Served) -> None:
    """A connection that the killed worker had not taken yet is reset; the next is not."""
    for _ in range(5):
        try:
            return ask(served, 1)
        except httpx2.TransportError:
            continue
    raise AssertionError("nobody answers")


def test_a_worker_asked_to_end_finishes_its_requests_and_is_replaced(two: Served) -> None:
    for pid in children(two.process.pid):
        os.kill(pid, signal.SIGTERM)
    within(15, lambda: two.text.count("it ended with 0") == 2, "the workers did not end")
    within(15, lambda: len(children(two.process.pid)) == 2, "there are not two workers again")
    within(15, lambda: answers_ready(two), "nobody answers")


def answers_ready(served: Served) -> bool:
    try:
        return httpx2.get(f"{served.url}/ready", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def test_no_process_outlives_a_killed_parent(two: Served) -> None:
    workers = children(two.process.pid)
    os.kill(two.process.pid, signal.SIGKILL)
    two.process.wait(5)
    within(15, lambda: not any("serving.worker" in arguments(pid) for pid in workers), "a worker is left")
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{two.url}/health", trust_env=False)


def test_a_port_on_which_workers_listen_is_in_use(two: Served) -> None:
    with pytest.raises(StartError, match="choose another with --host and --port"):
        hold("127.0.0.1", int(two.url.rpartition(":")[2]))


def test_a_free_port_is_found_and_kept_without_listening() -> None:
    with hold("127.0.0.1", 0) as holder:
        port = holder.getsockname()[1]
        assert port
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


@asynccontextmanager
async def before_a_simulated_engine(
    tmp_path: Path, command: Sequence[str] = COMMAND, silent_s: float = SILENT_S, **gateway: Any
) -> AsyncIterator[tuple[Workers, Supervisor, httpx2.AsyncClient]]:
    """Two workers of this process, whose engine is looked at only when somebody doubts it."""
    path = tmp_path / "s"
    argv = [PENSTOCK, "sim", "--model", "m", "--uds", str(path)]
    launch = Launch("e-0", argv, {}, path, "/v1/completions", {"model": "m", "prompt": "a", "max_tokens": 1})
    probe = Probe(interval_s=60, timeout_s=0.5, failures=2, start_timeout_s=20)
    supervisor = Supervisor(launch, probe, 5, Replica.behind("e-0", path))
    engines = Engines({"e": Generation("e", [supervisor])}, asyncio.get_running_loop().create_future())
    tree: dict[str, Any] = {"engines": {"e": {"model": "demo"}}, "models": {"m": {"engine": "e"}}}
    config = Config(**tree, gateway={"workers": 2, **gateway})
    with hold("127.0.0.1", 0) as holder:
        address = holder.getsockname()[:2]
        async with beside([supervisor.run()], engines.failed):
            workers = Workers(config, address, engines, command, silent_s)
            run = asyncio.create_task(workers.run())
            ready = asyncio.create_task(workers.until_ready())
            try:
                async with asyncio.timeout(20):
                    await asyncio.wait([ready, run], return_when=asyncio.FIRST_COMPLETED)
                if run.done():
                    run.result()
                async with httpx2.AsyncClient(base_url=f"http://{address[0]}:{address[1]}", trust_env=False) as client:
                    yield workers, supervisor, client
                workers.drain(Drain())
                await run
            finally:
                ready.cancel()
                run.cancel()
                await asyncio.wait([run])


async def hang(engine: Path) -> None:
    transport = httpx2.AsyncHTTPTransport(uds=str(engine))
    async with httpx2.AsyncClient(transport=transport, base_url="http://engine") as client:
        assert (await client.put("/sim/faults", json=[{"kind": "hang"}])).status_code == 200


async def ask_new(client: httpx2.AsyncClient) -> int:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return (await client.post(CHAT, json=body, headers={"connection": "close"}, timeout=20)).status_code


async def test_workers_know_from_their_parent_when_an_engine_is_ready(tmp_path: Path) -> None:
    async with before_a_simulated_engine(tmp_path) as (_, supervisor, client):
        assert [await ask_new(client) for _ in range(6)] == [200] * 6
        assert supervisor.process
        supervisor.process.kill()
        async with asyncio.timeout(15):
            while (await client.get("/ready", headers={"connection": "close"})).status_code == 200:
                await asyncio.sleep(0.02)
        assert [await ask_new(client) for _ in range(6)] == [200] * 6


async def test_a_workers_doubt_reaches_the_engines_supervisor(tmp_path: Path) -> None:
    async with before_a_simulated_engine(tmp_path, first_token_timeout_s=0.5) as (_, supervisor, client):
        await hang(supervisor.launch.socket)
        assert await ask_new(client) == 504
        assert await ask_new(client) == 200
        assert supervisor.restarts == 1


async def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    async with before_a_simulated_engine(tmp_path, silent_s=6) as (workers, _, client):
        victim = next(pid for pid in children(os.getpid()) if "serving.worker" in arguments(pid))
        os.kill(victim, signal.SIGSTOP)
        async with asyncio.timeout(20):
            while victim in children(os.getpid()):
                await asyncio.sleep(0.05)
        assert [await ask_new(client) for _ in range(6)] == [200] * 6
        assert (await workers.figures())["penstock_worker_restarts_total"]


async def test_a_worker_that_cannot_start_ends_the_start_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"worker [12] did not start: it ended with 3"):
        async with before_a_simulated_engine(tmp_path, [sys.executable, "-c", "raise SystemExit(3)"]):
            pass


async def test_a_worker_that_cannot_bind_says_why(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        tree: dict[str, Any] = {"engines": {"s": {"kind": "scripted"}}, "models": {"m": {"engine": "s"}}}
        config = Config(**tree, gateway={"workers": 2})
        engines = Engines({}, asyncio.get_running_loop().create_future())
        with pytest.raises(StartError, match="did not start: cannot listen on"):
            await Workers(config, taken.getsockname(), engines).run()
