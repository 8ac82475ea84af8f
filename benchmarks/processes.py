"""What a process and everything it has started cost: CPU time, memory; and where they may run."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

CPUCLOCK_SCHED = 2  # <linux/posix-timers.h>: the scheduler's own count, in nanoseconds
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
IDLE_FIELDS = (3, 4)  # proc(5), of a `cpu` line of /proc/stat: idle, iowait


def tree(pid: int) -> list[int]:
    """`pid` and its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text(errors="replace").rpartition(") ")[2]
            except OSError:  # it has ended
                continue
            children.setdefault(int(after_name.split()[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds of the processes so far, all their threads included, those that have ended too."""
    total = 0.0
    for pid in pids:
        try:
            total += time.clock_gettime(process_clock(pid))
        except OSError:  # it has ended
            continue
    return total


def process_clock(pid: int) -> int:
    """As clock_getcpuclockid(3) makes it. Finer than the ticks of /proc/PID/stat, and one call for all threads."""
    return (~pid << 3) | CPUCLOCK_SCHED


def resident_bytes(pids: Sequence[int]) -> int:
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES for pid in pids)


def busy_s(cores: Sequence[int]) -> float:
    """Seconds in which these cores did anything at all, for whomever, in ticks of 10 ms."""
    total = 0
    wanted = {f"cpu{core}" for core in cores}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *figures = line.split()
        if name in wanted:
            total += sum(int(figure) for n, figure in enumerate(figures[:8]) if n not in IDLE_FIELDS)
    return total * TICK_S


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started inside the block runs on `core` alone, its children and threads too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def started(
    command: Sequence[str],
    core: int | None,
    log: IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    *,
    apart: bool = True,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with everything it writes in `log`; without one, its standard output is a pipe. Ended with SIGTERM.

    `apart`: in a session of its own, so that Ctrl-C does not reach it. Linux divides a core among sessions first.
    """
    with pinned(core) if core is not None else nullcontext():
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log or subprocess.PIPE,
            stderr=log and subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=apart,
        )
    try:
        yield process
    finally:
        stop(process)


def end_in_order() -> None:
    """SIGTERM unwinds from now on, so that what was started is ended too."""

    def unwind(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, unwind)


def stop(process: subprocess.Popen[bytes], patience_s: float = 40) -> None:
    family = tree(process.pid)
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in family[1:]:  # what a killed parent has left behind
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if process.stdout:
        process.stdout.close()
