"""One measurement of one gateway, taken by a load generator on the other core, and the kinds of work there are."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import Load
from benchmarks.processes import pinned
from benchmarks.prompts import bodies
from benchmarks.reference import looks_while

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

    `reference_s`: how long the gateway's core needed for always the same work, at several moments.
    """

    cpu_us: float
    per_s: float
    latency_us: list[float]  # of the open loop alone
    gateway_share: float
    client_share: float
    foreign_share: float
    reference_s: list[float]
    errors: dict[str, int]


@dataclass(frozen=True)
class Range:
    """Where measurements are taken: the mock engine and what keeps its core busy (processes), the bodies, how long.
    `keys`: files of API keys, for the addresses that ask for one."""

    mock_pid: int
    spin_pid: int
    folder: Path
    size_bytes: int
    clients: int
    seconds: float
    warm_s: float = 0.5
    keys: dict[str, Path] = field(default_factory=dict)

    def measure(self, url: str, pid: int | None, work: Work) -> Sample:
        """`pid` is the gateway's; none: `url` is the engine's own, and its CPU time is what counts as the gateway's."""
        seconds = self.seconds * work.times
        load, looks = self.load(url, pid, work, ["--warm-s", str(self.warm_s), "--seconds", str(seconds)], seconds)
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
            reference_s=looks,
            errors=load.errors or ({} if done else {"nothing was answered": 1}),
        )

    def load(
        self, url: str, pid: int | None, work: Work, extra: list[str], seconds: float = 0
    ) -> tuple[Load, list[float]]:
        """What the load generator counted, and how fast the gateway's core was in its last `seconds`."""
        command = [sys.executable, "-m", "benchmarks.load", url, *extra]
        command += ["--bodies", str(work.write(self.folder, self.size_bytes)), "--clients", str(self.clients)]
        command += ["--stream", "--events", str(work.events)] if work.stream else []
        command += ["--keys", str(self.keys[url])] if url in self.keys else []
        command += ["--rate", str(work.rate), "--times"] if work.rate else []
        for watched in (pid, self.mock_pid, self.spin_pid):
            command += ["--watch", str(watched)] if watched else []
        said = self.folder / "load.json"
        with said.open("wb") as output, pinned(CLIENT_CORE):
            process = subprocess.Popen(command, stdout=output)
        with process:
            looks = looks_while(process, GATEWAY_CORE, seconds)
        if process.returncode:
            raise SystemExit(f"the load generator ended with {process.returncode}")
        return Load(**json.loads(said.read_bytes())), looks
