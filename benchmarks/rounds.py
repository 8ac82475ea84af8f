"""One measurement of one gateway, taken by a load generator on the other core, and the kinds of work there are."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import Load
from benchmarks.processes import pinned
from benchmarks.prompts import bodies
from benchmarks.reference import work_s

GATEWAY_CORE = 0
CLIENT_CORE = 1


@dataclass(frozen=True)
class Work:
    """What the clients ask for. `pace_ms` lies between two tokens of a stream; `rate` makes the loop an open one;
    `times` as long as other work is how long it is measured."""

    name: str
    tokens: int = 10
    stream: bool = False
    pace_ms: int = 0
    rate: float = 0
    times: int = 1

    @property
    def events(self) -> int:
        """Of each stream: the role and [DONE] come beside the tokens."""
        return self.tokens + 2 if self.stream else 0

    def write(self, folder: Path, size_bytes: int) -> Path:
        """The file of bodies that the load generator reads."""
        streaming = {"stream": True, "seed": self.pace_ms} if self.stream else {}
        file = folder / f"{self.name}.jsonl"
        file.write_bytes(b"\n".join(bodies(size_bytes, max_tokens=self.tokens, **streaming)))
        return file


@dataclass(frozen=True)
class Sample:
    """What one measurement found. Shares are of one core; `foreign_share` is what neither side has used.

    `reference_s`: how long the gateway's core needed for always the same work, just before and just after.
    """

    cpu_us: float
    per_s: float
    latency_us: list[float]  # of the open loop alone
    gateway_share: float
    client_share: float
    foreign_share: float
    reference_s: tuple[float, float]
    errors: dict[str, int]


@dataclass(frozen=True)
class Range:
    """Where measurements are taken: the mock engine and what keeps its core busy (processes), the bodies, how long."""

    mock_pid: int
    spin_pid: int
    folder: Path
    size_bytes: int
    clients: int
    seconds: float
    warm_s: float = 0.5

    def measure(self, url: str, pid: int | None, work: Work) -> Sample:
        """`pid` is the gateway's; none: `url` is the engine's own, and its CPU time is what counts as the gateway's."""
        reference_s = work_s(GATEWAY_CORE)
        load = self.load(url, pid, work, ["--warm-s", str(self.warm_s), "--seconds", str(self.seconds * work.times)])
        gateway_s = load.watched_cpu_s[0] if pid else 0.0
        mock_s, spin_s = load.watched_cpu_s[-2:]
        ours_s = gateway_s + mock_s + spin_s + load.own_cpu_s
        done = load.events if work.stream else load.completed
        return Sample(
            cpu_us=1e6 * gateway_s / max(1, done),
            per_s=done / load.wall_s,
            latency_us=[1e6 * taken for taken in load.latency_s],
            gateway_share=gateway_s / load.wall_s,
            client_share=(mock_s + load.own_cpu_s) / load.wall_s,
            foreign_share=max(0.0, load.busy_s - ours_s) / load.wall_s,
            reference_s=(reference_s, work_s(GATEWAY_CORE)),
            errors=load.errors or ({} if done else {"nothing was answered": 1}),
        )

    def load(self, url: str, pid: int | None, work: Work, extra: list[str]) -> Load:
        command = [sys.executable, "-m", "benchmarks.load", url, *extra]
        command += ["--bodies", str(work.write(self.folder, self.size_bytes)), "--clients", str(self.clients)]
        command += ["--stream", "--events", str(work.events)] if work.stream else []
        command += ["--rate", str(work.rate), "--times"] if work.rate else []
        for watched in (pid, self.mock_pid, self.spin_pid):
            command += ["--watch", str(watched)] if watched else []
        with pinned(CLIENT_CORE):
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            raise SystemExit(f"the load generator failed:\n{answer.stderr[-2000:]}")
        return Load(**json.loads(answer.stdout))
