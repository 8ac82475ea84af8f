"""How fast a core is just now: a fixed piece of work, timed by the core's own clock.

A virtual core can be half again as slow for seconds while its host's other tenants work, with nothing on this side to
show for it. A gateway measured in such seconds looks half again as dear.
"""

import os
import time
from dataclasses import dataclass

from benchmarks.processes import pinned

REPEATS = 5000
LINE = b"x" * 200
FIRST_LOOKS = 40


def work_s() -> float:
    """CPU seconds for system calls and small objects, as a gateway has them: some 10 ms."""
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


@dataclass
class Reference:
    """Remembers the fastest the core ever was."""

    core: int
    best_s: float = float("inf")

    def __post_init__(self) -> None:
        for _ in range(FIRST_LOOKS):
            self.slowness()

    def slowness(self) -> float:
        """1.0: as fast as ever; 1.5: the same work takes half again as long now."""
        with pinned(self.core):
            now_s = work_s()
        self.best_s = min(self.best_s, now_s)
        return now_s / self.best_s
