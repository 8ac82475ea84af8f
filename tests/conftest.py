"""What several tests share: the real engine, started once per run the way the README says."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import hypothesis
import pytest

from tests.databases import Postgres, running_postgres
from tests.processes import ByEngine, end_engine

REPOSITORY = Path(__file__).parent.parent
START_S = 300

# Several run at once: with a thread for each core in each of them, they would mostly spin and wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Other work may hold this machine up at any moment: an example has no deadline.
hypothesis.settings.register_profile(
    "penstock", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], max_examples=60
)
hypothesis.settings.load_profile("penstock")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return ByEngine(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    end_engine(item, nextitem)


@dataclass
class Served:
    """A running `penstock serve`, its address, and everything it has printed so far."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    home: Path
    client: httpx2.Client = field(repr=False)

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def until(self, words: str, within_s: float) -> str:
        """The first line that has `words`; fails with the log's end if none comes in time."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            for line in self.text.splitlines():
                if words in line:
                    return line
            assert self.process.poll() is None, self.text[-4000:]
            time.sleep(0.1)
        raise AssertionError(f"no {words!r} within {within_s} s:\n{self.text[-4000:]}")

    @property
    def engine_socket(self) -> str:
        found = re.search(r"--uds (\S+)", self.text)
        assert found, self.text
        return found[1]

    def engine_processes(self) -> list[int]:
        """The engine's process group, vLLM's API server first."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        (leader,) = (pid for pid in pids if self.engine_socket in arguments(pid) and group(pid) == pid)
        return [leader, *(pid for pid in pids if pid != leader and group(pid) == leader)]

    def figure(self, sample: str) -> float:
        """A sample of /metrics by its name and labels, 0 if it is not there yet."""
        found = re.search(rf"^{re.escape(sample)} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0


def group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:  # it has ended
        return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], port: int, folder: Path, **env: str) -> Iterator[Served]:
    """A gateway on `port` with its state and log in `folder`, once it has said that it serves; ended with SIGTERM."""
    environment = {**os.environ, "PENSTOCK_HOME": str(folder), **env}
    log = folder / f"log-{port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    with process, httpx2.Client(base_url=url, timeout=120, trust_env=False) as client:
        served = Served(process, url, log, folder, client)
        try:
            served.until("Try:", START_S)
            yield served
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`make serve`: the gateway and the real vLLM with the bundled model. Probes are frequent, for the tests that
    kill the engine; they wait for it to be back before they end."""
    port = free_port()
    quick = {"INTERVAL_S": "2", "TIMEOUT_S": "5", "FAILURES": "2"}
    env = {f"PENSTOCK_ENGINES__BASE__PROBE__{name}": value for name, value in quick.items()}
    with running(["make", "serve", f"PORT={port}"], port, tmp_path_factory.mktemp("demo"), **env) as served:
        yield served


@pytest.fixture(scope="session", autouse=True)
def nobodys_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test touches the state of whoever runs it: where it names no home, this one is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of `penstock serve`."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests; each takes a database of its own."""
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state' / 'penstock.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return asyncio.run(server.fresh())
