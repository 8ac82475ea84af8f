"""The gate before the real vLLM: an adapter that is as good, one whose weights were spoilt, and what a person types."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine import machine
from evals.candidates import Candidate, candidate
from evals.gate import Trial, judge
from evals.questions import questions
from evals.report import Report
from evals.seats import Seats
from penstock.config import Engine
from penstock.gates import Asked, Gate, Latency, Parity, Safety
from penstock.references import Reference
from penstock.store import opened
from penstock.trial import task, why_not
from registry.adding import About, add
from registry.aliases import move
from registry.artifacts import artifacts_at
from tests.conftest import REPOSITORY, arguments
from tests.evals.adapters import lora

PENSTOCK = str(Path(sys.executable).parent / "penstock")
DEMO = REPOSITORY / "recipes/demo/model"
GATE = Gate(
    tasks=[Asked(task="one_passage", items=24, max_tokens=32, at_least=0.7)],
    parity=Parity(prompts=8, tokens=24),
    safety=Safety(prompts="refusal", items=6, max_tokens=24, at_least=0.5),
    latency=Latency(requests=4, tokens=8, first_token=1000, per_token=1000),
    options={"dtype": "float32"},
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """demo@1, and its adapters terse@1 (production), which changes next to nothing, and terse@2, which is spoilt."""
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


async def both() -> tuple[Candidate, Candidate]:
    with tempfile.TemporaryDirectory() as scratch:
        async with opened(None) as store:
            found = [
                await candidate(store, artifacts_at(None), Reference("terse", number), Path(scratch))
                for number in (1, 2)
            ]
    return replace(found[0], parent_folder=DEMO), replace(found[1], parent_folder=DEMO)


def test_a_good_adapter_passes_and_a_spoilt_one_is_stopped(home: Path) -> None:
    """By one engine: the spoilt one is served exactly as it was trained, and is worse."""

    async def done() -> tuple[Report, Report]:
        good, spoilt = await both()
        asked = questions(GATE, task)
        seats = Seats([good, spoilt], Engine(model="demo", options=GATE.options, stop_s=5), machine.detect(), {})
        usual = Trial(GATE, "here", good, None, "terse@production", asked, seats, why_not)
        try:
            first = await judge(usual)
            return first, await judge(replace(usual, candidate=spoilt, incumbent=good, findings=[]))
        finally:
            await seats.close()

    first, second = asyncio.run(done())
    assert first.passed, first.reasons
    made = {finding.check: finding for finding in first.findings}
    assert made["parity"].figures["logprobs_apart"] < 1e-4
    assert made["parity"].figures["prompts"] == 8
    assert made["serves"].verdict == made["end of turn"].verdict == "passed"
    assert not second.passed
    made = {finding.check: finding for finding in second.findings}
    assert made["parity"].verdict == "passed", made["parity"].why
    assert made["task one_passage"].verdict == made["regression one_passage"].verdict == "failed"
    assert made["latency"].figures["in_turn"]
    json.dumps(second.described(), allow_nan=False)


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
