"""The gateway and its engines as processes of their own: killed, stopped, flooded, asked to end."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from engine.sim import Fault, expected, simulator
from tests.conftest import REPOSITORY, Served, free_port, running
from tests.reliability.client import Caller, ask, post
from tests.reliability.conftest import ASK, STREAM, WITH_USAGE, about, until

pytestmark = pytest.mark.anyio

PENSTOCK = [sys.executable, "-c", "from penstock.cli import app; app()"]
STREAMS = 8
MOST_GROWTH_BYTES = 100 * 2**20


@contextmanager
def simulated(*options: str, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`penstock sim` and its address."""
    command = [*PENSTOCK, "sim", "--port", str(port), *options]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


@asynccontextmanager
async def serving(urls: Sequence[str], folder: Path, **options: float | str) -> AsyncIterator[Served]:
    """`penstock serve` before these engines; options such as `gateway__stall_timeout_s=1`."""
    port = free_port()
    command = [*PENSTOCK, "serve", "--upstream", f"sim={','.join(urls)}", "--port", str(port)]
    env = {f"PENSTOCK_{name.upper()}": str(value) for name, value in options.items()}
    with ExitStack() as open:
        yield await asyncio.to_thread(open.enter_context, running(command, port, folder, **env))
        await asyncio.to_thread(open.close)


async def test_streams_of_a_killed_engine_go_on_and_it_comes_back(tmp_path: Path) -> None:
    pace = ("--itl-s", "0.03")
    with simulated(*pace) as (_, second_url):
        with simulated(*pace) as (first, first_url):
            async with serving([first_url, second_url], tmp_path) as served:
                asking = [asyncio.create_task(ask(served.url, about(n, WITH_USAGE))) for n in range(STREAMS)]
                await asyncio.sleep(0.4)
                first.kill()
                for number, said in enumerate(await asyncio.gather(*asking)):
                    assert (said.text, said.done) == (expected(about(number, WITH_USAGE)).text, True)
                after = await asyncio.gather(*(ask(served.url, about(number, STREAM)) for number in range(STREAMS)))
                assert all(said.done for said in after)
                with simulated(*pace, port=int(first_url.rpartition(":")[2])):
                    async with asyncio.timeout(6):
                        while not served.figure('penstock_engine_ready{engine="sim",replica="0"}'):
                            await asyncio.sleep(0.1)


async def test_streams_of_a_stopped_engine_are_had_elsewhere_until_it_goes_on(tmp_path: Path) -> None:
    ready = 'penstock_engine_ready{engine="sim",replica="0"}'
    with simulated() as (first, first_url), simulated() as (_, second_url):
        async with serving([first_url, second_url], tmp_path, gateway__first_byte_timeout_s=0.5) as served:
            first.send_signal(signal.SIGSTOP)
            answers = await asyncio.gather(*(ask(served.url, about(number, STREAM)) for number in range(STREAMS)))
            for number, said in enumerate(answers):
                assert (said.text, said.done) == (expected(about(number, STREAM)).text, True)
            assert served.figure(ready) == 0
            first.send_signal(signal.SIGCONT)
            async with asyncio.timeout(30):
                while not served.figure(ready):
                    await asyncio.sleep(0.1)


async def test_streams_that_have_no_token_of_a_stopped_engine_yet_are_had_elsewhere(tmp_path: Path) -> None:
    probe = {"engines__sim__probe__interval_s": 0.2, "engines__sim__probe__timeout_s": 0.5}
    with simulated("--ttft-s", "1") as (first, first_url), simulated("--ttft-s", "1") as (_, second_url):
        async with serving([first_url, second_url], tmp_path, **probe) as served:
            asking = [asyncio.create_task(ask(served.url, about(n, STREAM))) for n in range(4 * STREAMS)]
            await asyncio.sleep(0.5)
            first.send_signal(signal.SIGSTOP)
            for number, said in enumerate(await asyncio.gather(*asking)):
                assert (said.text, said.done) == (expected(about(number, STREAM)).text, True)


async def test_what_is_without_measure_takes_bounded_memory(tmp_path: Path) -> None:
    async with simulator() as sim, serving([sim.url], tmp_path, engines__sim__routing__breaker_failures=99) as served:
        assert (await ask(served.url, ASK)).status == 200
        before = memory_bytes(served.process.pid)
        for fault in (Fault("huge_body", size_mb=80), Fault("huge_headers", size_kb=200)):
            for body in (ASK, STREAM):
                sim.faults[:] = [fault]
                assert (await ask(served.url, body)).status == 502
        sim.faults[:] = [Fault("flood", events=60_000)]
        async with Caller(served.url) as slow:
            await slow.send(post(STREAM))
            await asyncio.sleep(1)
            assert sim.running == 1
        await until(lambda: not sim.running)
        grown = most_memory_bytes(served.process.pid) - before
        print(f"the most memory beyond {before / 2**20:.0f} MiB: {grown / 2**20:.0f} MiB")
        assert grown < MOST_GROWTH_BYTES


def memory_bytes(pid: int, name: str = "VmRSS") -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def most_memory_bytes(pid: int) -> int:
    return memory_bytes(pid, "VmHWM")


async def test_streams_end_before_the_gateway_does(tmp_path: Path) -> None:
    async with simulator(itl_s=0.05) as sim, serving([sim.url], tmp_path) as served:
        asking = [asyncio.create_task(ask(served.url, about(number, WITH_USAGE))) for number in range(6)]
        await until(lambda: sim.running == 6)
        served.process.send_signal(signal.SIGTERM)
        for number, said in enumerate(await asyncio.gather(*asking)):
            assert (said.text, said.done) == (expected(about(number, WITH_USAGE)).text, True)
        with pytest.raises(ConnectionError):
            await ask(served.url, ASK)
        assert await asyncio.to_thread(served.process.wait, 20) == 0
    assert sim.completed == 6


@contextmanager
def read_by_nobody(url: str, port: int, folder: Path, *, gone: bool) -> Iterator[subprocess.Popen[bytes]]:
    """`penstock serve` whose output goes to pipes that are not read; `gone`: nor can be."""
    command = [*PENSTOCK, "serve", "--upstream", f"sim={url}", "--port", str(port)]
    env = {**os.environ, "PENSTOCK_HOME": str(folder), "PENSTOCK_ENGINES__SIM__ROUTING__BREAKER_FAILURES": "9999"}
    with subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline()
        if gone:
            process.stdout.close()
            process.stderr.close()
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("gone", [True, False])
async def test_requests_are_served_while_nobody_reads_the_log(tmp_path: Path, gone: bool) -> None:
    port = free_port()
    async with simulator(Fault("cut", after=2)) as sim, AsyncExitStack() as open:
        serves = read_by_nobody(sim.url, port, tmp_path, gone=gone)
        process = await asyncio.to_thread(open.enter_context, serves)
        async with Caller(f"http://127.0.0.1:{port}") as caller:
            for number in range(500):  # each writes several lines
                assert (await caller.ask(about(number, STREAM))).error
            said = await caller.say(b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
    lost = re.search(rb"^penstock_log_lines_lost_total (\S+)$", said.body, re.MULTILINE)
    assert lost
    assert float(lost[1]) > 100
