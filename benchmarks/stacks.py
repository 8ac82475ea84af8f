"""Where a process spends its CPU time, by py-spy where that is installed."""

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SAMPLES_PER_S = 250


@contextmanager
def recorded(pid: int, seconds: int, file: Path) -> Iterator[None]:
    """Folded stacks of what `pid` does inside the block, native frames too, into `file`."""
    path = shutil.which("py-spy")
    if not path:
        raise SystemExit("py-spy is not on PATH: pip install py-spy")
    command = [path, "record", "--native", "--format", "raw", "--rate", str(SAMPLES_PER_S), "--duration", str(seconds)]
    process = subprocess.Popen(
        [*command, "--pid", str(pid), "--output", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield
    said, _ = process.communicate(timeout=seconds + 60)
    if process.returncode:
        raise SystemExit(f"py-spy failed:\n{said[-2000:]}")


def own_shares(folded: str) -> Counter[str]:
    """`a;b;c 3` lines -> how often each frame was the innermost: {"c": 3}."""
    found: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, times = line.rpartition(" ")
        found[stack.rpartition(";")[2]] += int(times)
    return found
