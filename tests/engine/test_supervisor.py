"""Starting, watching, replacing and ending an engine: a pretend one, with a real process and its ways."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from engine.launch import Launch
from engine.replica import Replica
from engine.supervisor import LONGEST_BACKOFF_S, Supervisor, backoff
from penstock.config import Probe
from penstock.errors import StartError

pytestmark = pytest.mark.anyio

QUICK = Probe(interval_s=0.2, timeout_s=0.3, failures=2, start_timeout_s=10)


def supervised(tmp_path: Path, mode: str = "", probe: Probe = QUICK) -> Supervisor:
    path = tmp_path / "s"
    argv = [sys.executable, "-m", "tests.engine.pretend", str(path), mode]
    launch = Launch("base-0", argv, {}, path, "/v1/completions", {"max_tokens": 1})
    return Supervisor(launch, probe, 5, Replica.behind("base-0", path))


@asynccontextmanager
async def started(supervisor: Supervisor) -> AsyncIterator[Supervisor]:
    run = asyncio.create_task(supervisor.run())
    try:
        await ready(supervisor)
        yield supervisor
    finally:
        run.cancel()
        await asyncio.wait([run])
        supervisor.replica.close()


async def ready(supervisor: Supervisor) -> None:
    async with asyncio.timeout(15):
        while not supervisor.replica.ready:
            await asyncio.sleep(0.01)


async def replaced(supervisor: Supervisor, pid: int) -> None:
    """Returns once another process than `pid` is ready."""
    async with asyncio.timeout(15):
        while pid_of(supervisor) == pid or not supervisor.replica.ready:
            await asyncio.sleep(0.02)


def pid_of(supervisor: Supervisor) -> int:
    assert supervisor.process
    return supervisor.process.pid


def environ(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


def exists(pid: int) -> bool:
    """Whether the process runs: one that has ended and waits to be collected does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_a_stale_socket_is_removed_before_the_start(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "s"))
    left.close()
    async with started(supervised(tmp_path)):
        pass


async def test_cancelling_ends_the_process_its_children_and_its_socket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with started(supervised(tmp_path)) as supervisor:
        pid = pid_of(supervisor)
        child = int(re.findall(r"child (\d+)", caplog.text)[0])
        assert exists(child)
    async with asyncio.timeout(5):
        while exists(pid) or exists(child):
            await asyncio.sleep(0.02)
    assert not (tmp_path / "s").exists()


async def test_a_killed_engine_is_replaced(tmp_path: Path) -> None:
    async with started(supervised(tmp_path)) as supervisor:
        pid = pid_of(supervisor)
        os.kill(pid, signal.SIGKILL)
        await replaced(supervisor, pid)
        assert supervisor.restarts == 1


async def test_a_stopped_engine_is_noticed_and_replaced(tmp_path: Path) -> None:
    async with started(supervised(tmp_path)) as supervisor:
        pid = pid_of(supervisor)
        os.kill(pid, signal.SIGSTOP)
        await replaced(supervisor, pid)
        assert not exists(pid)


async def test_an_engine_that_is_wedged_but_answers_is_replaced(tmp_path: Path) -> None:
    async with started(supervised(tmp_path)) as supervisor:
        pid = pid_of(supervisor)
        await supervisor.replica.client.ask("POST", "/wedge", timeout_s=10)
        await replaced(supervisor, pid)


async def test_an_engine_that_computes_without_a_token_is_left_alone_for_a_while(tmp_path: Path) -> None:
    async with started(supervised(tmp_path)) as supervisor:
        await supervisor.replica.client.ask("POST", "/busy", timeout_s=10)
        await supervisor.replica.client.ask("POST", "/v1/completions", timeout_s=10)
        await asyncio.sleep(0.5)
        assert supervisor.restarts == 0


async def test_an_engine_that_only_ever_computes_is_replaced(tmp_path: Path) -> None:
    impatient = QUICK.model_copy(update={"busy_s": 0.5})
    async with started(supervised(tmp_path, probe=impatient)) as supervisor:
        pid = pid_of(supervisor)
        await supervisor.replica.client.ask("POST", "/busy", timeout_s=10)
        work = asyncio.create_task(supervisor.replica.client.ask("POST", "/v1/completions", timeout_s=10))
        await replaced(supervisor, pid)
        await asyncio.wait([work])
        assert work.exception()


async def test_an_engine_that_refuses_the_probe_is_told_at_once(tmp_path: Path) -> None:
    supervisor = supervised(tmp_path)
    supervisor.launch = replace(supervisor.launch, probe_path="/refuse")
    with pytest.raises(StartError, match=r"refuses /refuse: no generation here; .*runner: pooling"):
        await supervisor.run()


async def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    supervisor = supervised(tmp_path)
    supervisor.launch = replace(supervisor.launch, argv=["/no/such/python"])
    with pytest.raises(StartError, match="cannot be started"):
        await supervisor.run()


async def test_the_gateways_keys_do_not_reach_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_GATEWAY__KEYS", '["sk-secret-secret-secret"]')
    async with started(supervised(tmp_path)) as supervisor:
        assert "sk-secret" not in environ(pid_of(supervisor))


async def test_a_suspect_gets_no_requests_until_it_has_generated_again(tmp_path: Path) -> None:
    slow = QUICK.model_copy(update={"interval_s": 60.0})
    async with started(supervised(tmp_path, probe=slow)) as supervisor:
        pid = pid_of(supervisor)
        supervisor.replica.suspect()
        assert not supervisor.replica.ready
        await ready(supervisor)
        assert pid_of(supervisor) == pid


async def test_a_first_start_that_fails_ends_in_one_message_with_the_remedy_and_the_last_lines(tmp_path: Path) -> None:
    with pytest.raises(StartError) as caught:
        await supervised(tmp_path, "bad-model").run()
    text = caught.value.message
    assert "did not start: it ended with exit status 1" in text
    assert "found neither on disk nor on Hugging Face" in text
    assert "    OSError: /m is not a local folder" in text


async def test_a_start_that_is_killed_names_the_signal_and_memory(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"(?s)died of SIGKILL.*for want of memory"):
        await supervised(tmp_path, "killed").run()


async def test_a_start_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    hurried = QUICK.model_copy(update={"start_timeout_s": 0.01})
    supervisor = supervised(tmp_path, "never", hurried)
    with pytest.raises(StartError, match="no first token in the time allowed"):
        await supervisor.run()
    assert not exists(pid_of(supervisor))


async def test_the_engines_log_goes_into_ours_at_its_level(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with started(supervised(tmp_path)):
        pass
    assert ("engine.base-0", 20, "INFO pretend engine starts") in caplog.record_tuples


def test_backoff_doubles_to_a_minute_with_jitter() -> None:
    for failures, ceiling in [(1, 1), (2, 2), (3, 4), (20, LONGEST_BACKOFF_S), (10_000, LONGEST_BACKOFF_S)]:
        delays = [backoff(failures) for _ in range(100)]
        assert ceiling / 2 <= min(delays) < max(delays) <= ceiling
