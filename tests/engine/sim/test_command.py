"""`penstock sim` as a process."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from engine.sim import expected
from engine.sim.faults import KINDS
from tests.conftest import REPOSITORY
from tests.engine.sim.conftest import ASK, CHAT, STREAM

COMMAND = [sys.executable, "-c", "from penstock.cli import app; app()", "sim"]


@contextmanager
def simulating(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address it has printed."""
    command = [*COMMAND, "--port", "0", *options]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert re.fullmatch(r"Simulating \S+ at http://127\.0\.0\.1:\d+\n", line), line
            yield process, line.split()[-1]
        finally:
            process.kill()


def said(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(number: signal.Signals) -> None:
    with simulating("--fault", "cut:after=3,times=1", "--tokens", "20", "--slots", "2") as (process, url):
        with httpx2.Client(base_url=url, timeout=20, trust_env=False) as client:
            with pytest.raises(httpx2.RemoteProtocolError):
                client.post(CHAT, json=STREAM)
            assert client.post(CHAT, json=STREAM).status_code == 200
            assert client.post(CHAT, json=ASK).json()["model"] == "sim"
            process.send_signal(number)
            assert process.wait(20) == 0


def test_two_processes_say_the_same() -> None:
    with simulating() as (_, first), simulating("--model", "other") as (_, second):
        for url in (first, second):
            body = {"messages": ASK["messages"]}
            answer = httpx2.post(f"{url}{CHAT}", json=body, timeout=20, trust_env=False)
            assert answer.json()["choices"][0]["message"]["content"] == expected(ASK).text


def test_a_fault_that_does_not_exist_is_told_with_the_nearest() -> None:
    shown = said("--fault", "ctu:after=3")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == "penstock: --fault: there is no fault 'ctu', did you mean 'cut'?\n"


def test_an_address_in_use_is_told() -> None:
    with simulating() as (_, url):
        shown = said("--port", url.rpartition(":")[2])
    assert shown.returncode == 1
    assert re.search(r"cannot listen on 127\.0\.0\.1:\d+: Address already in use; choose another", shown.stderr)


def test_the_kinds_of_faults_are_listed() -> None:
    lines = said("--list-faults").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(KINDS)
