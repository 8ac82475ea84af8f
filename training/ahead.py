"""Rows made ahead of the steps that learn from them, by other processes.

A GPU is through with a step before one processor has made the rows of the next; a core that learns need not make them,
where another has nothing to do. Every batch is a function of the seed and the step, so who makes it, and when, changes
nothing.
"""

import ctypes
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import torch

from engine.machine import cores
from training.packing import Batch

Made = tuple[list[Any], float]  # a batch's columns, and the CPU-seconds that they took

MOST_MAKERS = 8
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

_make: Callable[[int], Batch]
"""In a process that makes rows: what it was started with."""


def makers_for(device: str, threads: int) -> int:
    """How many processes make rows: beside a CPU that learns on `threads` of its cores one, if it has another core."""
    if device == "cpu":
        return int(cores() > threads)
    return max(1, min(MOST_MAKERS, cores() - 1))


@contextmanager
def ahead(
    make: Callable[[int], Batch], steps: range, makers: int, spent: Callable[[float], None] = lambda cpu_s: None
) -> Iterator[Iterator[Batch]]:
    """`make` of each step, in order; with `makers`, that many processes are at the next ones meanwhile, two each, and
    `spent` is told the CPU-seconds of each.

    They are forks, so nothing is copied of what `make` reads; begin before there is anything on a GPU.
    """
    if not makers:
        yield map(make, steps)
        return
    with ProcessPoolExecutor(makers, get_context("fork"), _begin, (make, os.getpid())) as pool:
        asked = deque(pool.submit(_made, step) for step in steps[: 2 * makers])
        try:
            yield _in_order(pool, asked, steps[2 * makers :], spent)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, asked: "deque[Future[Made]]", later: range, spent: Callable[[float], None]
) -> Iterator[Batch]:
    waiting = iter(later)
    while asked:
        columns, cpu_s = asked.popleft().result()
        spent(cpu_s)
        if (step := next(waiting, None)) is not None:
            asked.append(pool.submit(_made, step))
        yield Batch(*(torch.from_numpy(column) for column in columns))


def _begin(make: Callable[[int], Batch], parent: int) -> None:
    """Ends with the parent, however that ends; Ctrl-C is the parent's to answer."""
    global _make  # noqa: PLW0603
    _make = make
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    if os.getppid() != parent:
        raise SystemExit("the run is gone")


def _made(step: int) -> Made:
    """As arrays: torch would share a tensor's memory by a file, which costs more than to copy a few rows."""
    began = time.process_time()
    columns = [column.numpy() for column in _make(step)]
    return columns, time.process_time() - began
