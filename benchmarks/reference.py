"""How fast a core is just now, and how to keep it from changing.

Two virtual cores are often the two threads of one real core, whether or not the machine says so: what one does makes
the other half again as slow. A gateway that leaves its clients waiting would then look cheaper than one that keeps
them busy. So the clients' core is kept busy throughout, and what else slows a core down shows in a fixed piece of work.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.processes import pinned, started

# It yields to whatever else wants the core, and takes whatever is left of it.
SPIN = "import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nprint(flush=True)\nwhile True: pass"
REPEATS = 5000
LINE = b"x" * 200


def work_s(core: int) -> float:
    """CPU seconds that `core` needs for system calls and small objects, as a gateway has them: some 10 ms."""
    with pinned(core):
        return timed()


def timed() -> float:
    reading, writing = os.pipe()
    began = time.thread_time()
    for _ in range(REPEATS):
        os.write(writing, LINE)
        os.read(reading, len(LINE))
        dict.fromkeys(range(20))
    used = time.thread_time() - began
    os.close(reading)
    os.close(writing)
    return used


@contextmanager
def kept_busy(core: int) -> Iterator[int]:
    """The process that does it: in the session of those it yields to, for it would have a session's share otherwise."""
    with started([sys.executable, "-c", SPIN], core, apart=False) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
