"""Rows made by other processes are those that the run would have made, in order, and their makers end with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.machine import living
from penstock.errors import ConfigError
from training.ahead import ahead, makers_for
from training.packing import Batch

REPOSITORY = Path(__file__).parents[2]
BUSY = """
import time
from training.ahead import ahead
from tests.training.test_ahead import numbered
with ahead(numbered, range(1000), 2) as rows:
    next(rows)
    print("begun", flush=True)
    time.sleep(60)
"""


def numbered(step: int) -> Batch:
    if step == 999:
        raise ConfigError("step 999 has no rows")
    return Batch(torch.full((2, 3), step), torch.full((2, 3), step / 2), torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("makers", [0, 1, 3])
@pytest.mark.parametrize("steps", [range(7, 30), range(2), range(0)])
def test_they_come_in_order_whoever_makes_them(makers: int, steps: range) -> None:
    spent: list[float] = []
    with ahead(numbered, steps, makers, spent.append) as rows:
        found = list(rows)

    assert len(found) == len(steps)
    assert len(spent) == (len(steps) if makers else 0)
    assert all(seconds > 0 for seconds in spent)
    for step, batch in zip(steps, found, strict=True):
        assert all(one.equal(other) for one, other in zip(batch, numbered(step), strict=True))


def test_what_is_wrong_with_rows_is_told_as_the_run_would_tell_it() -> None:
    with pytest.raises(ConfigError, match="step 999 has no rows"), ahead(numbered, range(990, 1010), 2) as rows:
        list(rows)


def test_a_killed_run_leaves_no_makers() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, cwd=REPOSITORY, start_new_session=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"begun\n"
        assert len(list(living(run.pid))) == 3
        os.kill(run.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while list(living(run.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not list(living(run.pid))


@pytest.mark.parametrize(
    ("device", "threads", "has", "makers"),
    [("cpu", 1, 1, 0), ("cpu", 4, 4, 0), ("cpu", 3, 4, 1), ("cpu", 1, 64, 1), ("cuda", 1, 1, 1), ("cuda", 1, 64, 8)],
)
def test_no_core_that_learns_makes_rows(
    device: str, threads: int, has: int, makers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.ahead.cores", lambda: has)
    assert makers_for(device, threads) == makers
