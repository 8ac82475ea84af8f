"""What a process tree costs, of processes whose cost is known."""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.processes import cpu_s, pinned, resident_bytes, started, tree

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
THEN_WAIT = "print(flush=True)\ntime.sleep(60)\n"


def runs(pid: int) -> bool:
    """Whether it does, shortly after it was killed; a zombie does not."""
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or ") Z " in stat.read_text():
            return False
        time.sleep(0.05)
    return True


def burning(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_time_of_threads_that_have_ended_counts() -> None:
    code = "import threading, time\n"
    code += "def burn():\n    while time.thread_time() < 0.15: pass\n"
    code += "for _ in range(2):\n    one = threading.Thread(target=burn)\n    one.start()\n    one.join()\n"
    with started(burning(code + THEN_WAIT), None) as process:
        assert process.stdout
        process.stdout.readline()
        used_s = cpu_s(tree(process.pid))
    assert 0.3 <= used_s < 2


def test_the_time_of_children_counts_and_idle_time_does_not() -> None:
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN + THEN_WAIT!r}])\n"
    with started(burning(code), None) as process:
        assert process.stdout
        process.stdout.readline()
        family = tree(process.pid)
        used_s = cpu_s(family)
        time.sleep(0.3)
        idle_s = cpu_s(family) - used_s
        resident = resident_bytes(family)
    assert len(family) == 2
    assert 0.3 <= used_s < 2
    assert idle_s < 0.1
    assert 2**20 < resident < 2**30
    assert not any(runs(pid) for pid in family)


def test_what_is_started_in_the_block_has_one_core_and_what_is_started_after_it_has_all() -> None:
    asks = [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
    before = subprocess.check_output(asks)
    with pinned(0):
        assert subprocess.check_output(asks) == b"{0}\n"
    assert subprocess.check_output(asks) == before
