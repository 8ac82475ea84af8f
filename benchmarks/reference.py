"""How fast a core is while something else is measured on it.

Two virtual cores are sometimes the two threads of one real core and sometimes two real cores, as the host likes; for
seconds or minutes at a time everything then takes half again as long. Nothing on this side says so, but a fixed piece
of work shows it, provided that the other core is busy all the while.
"""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.processes import pinned, started

# It yields to whatever else wants the core, and takes whatever is left of it.
SPIN = "import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nprint(flush=True)\nwhile True: pass"
REPEATS = 1200
LINE = b"x" * 200
EVERY_S = 0.1  # a fortieth of the core


def looks_while(process: "subprocess.Popen[bytes]", core: int, seconds: float) -> list[float]:
    """CPU seconds of the same work on `core`, done again and again in the last `seconds` before `process` ended."""
    looks: deque[tuple[float, float]] = deque()
    while process.poll() is None:
        time.sleep(EVERY_S)
        looks.append((time.monotonic(), work_s(core)))
    end = time.monotonic()
    return [took_s for at, took_s in looks if at >= end - seconds]


def work_s(core: int) -> float:
    """System calls and small objects, as a gateway has them: some 2 ms."""
    reading, writing = os.pipe()
    with pinned(core):
        began = time.thread_time()
        for _ in range(REPEATS):
            os.write(writing, LINE)
            os.read(reading, len(LINE))
            dict.fromkeys(range(20))
        used_s = time.thread_time() - began
    os.close(reading)
    os.close(writing)
    return used_s


@contextmanager
def kept_busy(core: int) -> Iterator[int]:
    """The process that does it: in the session of those it yields to, for it would have a session's share otherwise."""
    with started([sys.executable, "-c", SPIN], core, apart=False) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
