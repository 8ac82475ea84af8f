"""Reloads under load: no request fails and no stream is cut, whatever the file says. In one process, and in several."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from engine.sim import Simulator, simulator
from penstock import audit, metrics
from penstock.store import opened
from tests.conftest import Served, children, free_port, running
from tests.reliability.client import ask
from tests.reliability.conftest import ASK, STREAM, about, until
from tests.serving.test_reload import Followed, following, tree_of, write

pytestmark = pytest.mark.anyio

PENSTOCK = [sys.executable, "-c", "from penstock.cli import app; app()"]
TIMES = 200
CALLERS = 12
KEY = "sk-0123456789abcdef"


def good(number: int, first: Simulator, second: Simulator) -> dict[str, Any]:
    """Another configuration each time: replicas, weights, names, fallbacks, routing, keys."""
    tree = tree_of(*[(first, second), (first,), (second, first), (second,)][number % 4])
    if number % 3 == 0:
        urls = tree["engines"]["e"]["urls"]
        tree["engines"]["e"]["urls"] = {url: weight for weight, url in enumerate(urls, start=1 + number % 5)}
    if number % 2:
        tree["engines"]["g"] = tree["engines"]["e"]
        tree["models"]["also"] = {"engine": "g", "queue_s": 0.1}
        tree["models"]["sim"]["fallback"] = "also"
    tree["engines"]["e"]["routing"] = {"affinity": ["prefix", "off"][number // 4 % 2]}
    tree["gateway"] = {"keys": [KEY, f"sk-{number:016}"][: 1 + number % 2]}
    return tree


BAD = [
    ("gateway:\n  kyes: []\n", "penstock.yaml:2: unknown key 'gateway.kyes', did you mean 'keys'?"),
    ("engines:\n  e: {urls: [nowhere]}\nmodels: {sim: {engine: e}}\n", "penstock.yaml:2: engines.e.urls"),
    (
        "models:\n  sim: {engine: bse}\nengines:\n  base: {kind: scripted}\n",
        "penstock.yaml:2: models.sim.engine: unknown engine 'bse', did you mean 'base'?",
    ),
    ("models: {sim: {engine: e}", "penstock.yaml:1 is not YAML: expected ',' or '}'"),
]


async def test_two_hundred_reloads_under_load_fail_no_request_and_cut_no_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    async with simulator(itl_s=0.004) as first, simulator(itl_s=0.004) as second:
        tree = tree_of(first, second, gateway={"keys": [KEY]})
        async with following(tmp_path, tree) as here:
            following_it = asyncio.create_task(here.reload.run())
            calling = [asyncio.create_task(call_on(here, first, number)) for number in range(CALLERS)]
            await asyncio.sleep(0.2)
            before = counted()
            for number in range(TIMES):
                bad, said = BAD[number // 2 % len(BAD)]
                caplog.clear()
                write(here.file, bad if number % 2 else good(number // 2, first, second))
                done = counted()
                os.kill(os.getpid(), signal.SIGHUP)
                await until(lambda done=done: counted() != done)  # type: ignore[misc]
                if number % 2:
                    assert said in caplog.text
                await asyncio.sleep(0.02)
            following_it.cancel()
            for task in calling:
                task.cancel()
            answered = sum(await asyncio.gather(*calling))
            await until(lambda: len(asyncio.all_tasks()) < 30)  # nothing is left of what was let go
        applied, refused = (after - before for after, before in zip(counted(), before, strict=True))
        print(f"{answered} answers during {applied} reloads and {refused} refusals")
        assert (refused, applied >= TIMES // 2 - 1) == (TIMES // 2, True)
        assert answered > TIMES
        assert first.aborted == second.aborted == 0


def counted() -> tuple[float, float]:
    values = metrics.reloads.values
    return values.get(("applied",), 0) + values.get(("unchanged",), 0), values.get(("refused",), 0)


async def call_on(here: Followed, sim: Simulator, caller: int) -> int:
    """Asks without pause until cancelled; returns how often. Whatever is under way then is ended."""
    asked = 0
    stopped = asyncio.Event()

    async def one() -> None:
        body = about(caller * 100_000 + asked, STREAM if asked % 2 else ASK)
        said = await ask(here.url, body, headers={"x-api-key": KEY})
        assert said.status == 200, said.body
        if asked % 2:
            assert (said.text, said.done) == (sim.expected(body).text, True)
        else:
            assert said.json["choices"][0]["message"]["content"] == sim.expected(body).text

    while not stopped.is_set():
        try:
            work = asyncio.create_task(one())
            await asyncio.shield(work)
        except asyncio.CancelledError:
            stopped.set()
            await work
        asked += 1
    return asked


@asynccontextmanager
async def serving(tree: dict[str, Any], folder: Path, workers: int) -> AsyncIterator[tuple[Served, Path]]:
    """`penstock serve --config FILE`."""
    file, port = folder / "penstock.yaml", free_port()
    write(file, tree)
    command = [*PENSTOCK, "serve", "--config", str(file), "--port", str(port), "--workers", str(workers)]
    async with AsyncExitStack() as open:
        served = await asyncio.to_thread(open.enter_context, running(command, port, folder))
        yield served, file
        await asyncio.to_thread(served.process.send_signal, signal.SIGTERM)
        assert await asyncio.to_thread(served.process.wait, 20) == 0


async def answers(served: Served, body: dict[str, Any]) -> None:
    """Often enough for every worker to be asked."""
    for said in await asyncio.gather(*(ask(served.url, body) for _ in range(12))):
        assert said.status == 200, said.body


async def everywhere(served: Served, models: list[str]) -> None:
    """Whichever worker is asked."""

    def listed() -> set[tuple[str, ...]]:
        answers = [httpx2.get(f"{served.url}/v1/models", trust_env=False).json() for _ in range(10)]
        return {tuple(model["id"] for model in answer["data"]) for answer in answers}

    async with asyncio.timeout(15):
        while await asyncio.to_thread(listed) != {tuple(models)}:
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_process_moves_at_sighup_and_when_the_file_changes(tmp_path: Path, workers: int) -> None:
    async with simulator(itl_s=0.05) as first, simulator(itl_s=0.05) as second:
        async with serving(tree_of(first), tmp_path, workers) as (served, file):
            asking = [asyncio.create_task(ask(served.url, about(number, STREAM))) for number in range(6)]
            await until(lambda: first.running == 6)
            tree = tree_of(second)
            tree["models"]["more"] = {"engine": "e"}
            write(file, tree)
            served.process.send_signal(signal.SIGHUP)
            await everywhere(served, ["sim", "more"])
            await answers(served, {**ASK, "model": "more"})
            assert first.started == 6
            for number, said in enumerate(await asyncio.gather(*asking)):
                assert (said.text, said.done) == (first.expected(about(number, STREAM)).text, True)
            file.write_text("gateway:\n  prot: 80\n")
            served.until("unknown key 'gateway.prot', did you mean 'port'?", 10)
            await everywhere(served, ["sim", "more"])
            if workers > 1:  # one that comes later begins with what is served now
                os.kill(children(served.process.pid)[0], signal.SIGKILL)
                async with asyncio.timeout(15):
                    while len(children(served.process.pid)) < workers or "replaced" not in served.text:
                        await asyncio.sleep(0.1)
                await asyncio.sleep(1)
                await everywhere(served, ["sim", "more"])
            write(file, tree_of(first, second))
            await everywhere(served, ["sim"])
            await answers(served, ASK)
            figures = await asyncio.to_thread(lambda: served.client.get("/metrics").text)
            counts = dict(re.findall(r'^penstock_reloads_total\{result="(\w+)"\} (\S+)$', figures, re.MULTILINE))
            assert (counts["applied"], counts["refused"]) == ("2.0", "1.0")
        async with opened(f"sqlite:///{tmp_path}/penstock.db") as store:
            changed = [entry for entry in await audit.last(store, 10) if entry.action == "config.reloaded"]
        assert len(changed) == 2
        assert "models.more" in changed[0].details
    assert first.aborted == second.aborted == 0


async def test_sighup_without_a_file_is_told_and_harmless(tmp_path: Path) -> None:
    port = free_port()
    command = [*PENSTOCK, "serve", "--engine", "scripted", "--port", str(port)]

    def signalled() -> None:
        with running(command, port, tmp_path) as served:
            served.process.send_signal(signal.SIGHUP)
            assert "SIGHUP: there is no configuration file" in served.until("SIGHUP", 10)
            assert served.client.get("/ready").status_code == 200

    await asyncio.to_thread(signalled)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sighup_at_any_moment_ends_nothing_and_is_not_forgotten(tmp_path: Path, workers: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(HANGUP_AT_EVERY_IMPORT)
    file, port = tmp_path / "p.yaml", free_port()
    write(file, {"engines": {"s": {"kind": "scripted"}}, "models": {"m": {"engine": "s"}}})
    command = [*PENSTOCK, "serve", "--config", str(file), "--port", str(port), "--workers", str(workers)]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    def hang_up(process: "subprocess.Popen[str]") -> None:
        while process.poll() is None:
            process.send_signal(signal.SIGHUP)
            time.sleep(0.002)

    with ThreadPoolExecutor() as threads:
        with running(command, port, tmp_path, PYTHONPATH=path) as served:
            served.until("p.yaml was read again; changed: nothing", 10)
            sent = [line.split() for line in (tmp_path / "sent").read_text().splitlines()]
            assert len({pid for pid, _ in sent}) == (1 if workers == 1 else 1 + workers)
            assert [str(served.process.pid), "typer"] in sent
            ended = threads.submit(hang_up, served.process)
        ended.result()
    assert served.process.returncode == 0, served.text[-2000:]
    assert "replaced" not in served.text


def test_the_bad_files_are_as_bad_as_they_are_meant_to_be() -> None:
    for text, _ in BAD[:-1]:
        assert yaml.safe_load(text)


# Every process signals itself from the first module on that Penstock's own code imports beside its handler.
HANGUP_AT_EVERY_IMPORT = """
import os, signal, sys

class AtEveryImport:
    armed = False

    def find_spec(self, name, path=None, target=None):
        if name in ("penstock", "serving"):
            self.armed = True
        if self.armed and name not in FIRST:
            with open(os.path.join(os.environ["PENSTOCK_HOME"], "sent"), "a") as sent:
                sent.write(f"{os.getpid()} {name}\\n")
            os.kill(os.getpid(), signal.SIGHUP)

FIRST = {"penstock", "penstock.cli", "penstock.hangup", "serving", "serving.worker", "signal", "types"}
sys.meta_path.insert(0, AtEveryImport())
"""
