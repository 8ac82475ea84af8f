"""`penstock eval` of a registered version, by a real vLLM of its own. tests/benchmarks/test_loop.py asks the gate."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.references import Reference
from penstock.store import opened
from registry.adding import About, add
from registry.aliases import move
from registry.artifacts import artifacts_at
from tests.conftest import REPOSITORY, arguments
from tests.evals.adapters import lora

PENSTOCK = str(Path(sys.executable).parent / "penstock")
DEMO = REPOSITORY / "recipes/demo/model"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """demo@1, and its adapters terse@1 (production), and terse@2."""
    home = tmp_path_factory.mktemp("home")

    async def filled() -> None:
        async with opened(None) as store:
            kept = artifacts_at(None)
            await add(store, kept, DEMO, About("demo"), "me")
            for number, size in enumerate((0.005, 1.0)):
                folder = lora(home / f"lora-{number}", DEMO, size)
                await add(store, kept, folder, About("terse", parent="demo@1"), "me")
            await move(store, "production", Reference("terse", 1), None, "me")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_HOME", str(home))
        asyncio.run(filled())
        yield home


def evaluating(*words: str) -> subprocess.Popen[str]:
    heeding = ["env", "--default-signal=INT"]  # which is ignored where the tests run in the background
    command = [*heeding, PENSTOCK, "eval", "react", "--model", "registry:terse@production", *words]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )


def engines(home: Path) -> list[int]:
    """Processes of an engine that has its socket in this home."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if any(word.startswith(f"{home}/run/") for word in arguments(pid))]


def test_a_registered_version_is_evaluated_by_an_engine_of_its_own(home: Path, tmp_path: Path) -> None:
    """And a run that is gone on with asks the version that it began with."""
    out = str(tmp_path / "run.jsonl")
    with evaluating("--limit", "4", "--json", "--out", out) as process:
        shown, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    found = json.loads(shown)
    assert (found["n"], found["errors"], found["model"]) == (4, 0, "terse@1")
    assert not engines(home)
    with evaluating("--limit", "4", "--json", "--out", out) as process:
        assert json.loads(process.communicate(timeout=60)[0]) == found


def test_ctrl_c_leaves_no_engine_behind(home: Path) -> None:
    with evaluating("--limit", "5") as process:
        deadline = time.monotonic() + 60
        while not engines(home):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode != 0
    assert not engines(home)
