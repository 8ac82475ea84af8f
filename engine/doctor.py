"""What this machine can run, what is wrong, and how to mend it."""

import importlib.util
import platform
from dataclasses import dataclass
from typing import Literal

from engine.launch import DEMO
from engine.machine import BOTH_ENGINES, NO_ENGINE, Machine, detect
from penstock import __version__
from penstock.home import home

GIB = 2**30
LEAST_BYTES = 4 * GIB


@dataclass(frozen=True)
class Finding:
    """`bad` keeps Penstock from serving, `note` is worth knowing."""

    level: Literal["good", "note", "bad"]
    subject: str
    says: str


def examine(machine: Machine | None = None) -> list[Finding]:
    here = machine or detect()
    return [versions(), engine(here), processor(here), memory(here), gpu(here), torch(here), state(), demo()]


def versions() -> Finding:
    python = platform.python_version()
    return Finding(
        "good", "versions", f"penstock {__version__}, Python {python}, {platform.system()} {platform.machine()}"
    )


def engine(here: Machine) -> Finding:
    if here.vllm_gpu and here.vllm_cpu:
        return Finding("bad", "engine", BOTH_ENGINES)
    if here.vllm_gpu:
        return Finding("good", "engine", f"vllm {here.vllm_gpu}, for GPUs")
    if here.vllm_cpu:
        return Finding(
            "good", "engine", f"vllm-cpu {here.vllm_cpu}; its own `vllm` command is broken, Penstock starts it"
        )
    return Finding("bad", "engine", NO_ENGINE)


def processor(here: Machine) -> Finding:
    cores = f"{here.cores} cores"
    if here.bfloat16:
        return Finding("good", "processor", f"{cores} with AVX512 and bfloat16: every CPU kernel, 4-bit included")
    if here.avx512:
        return Finding("good", "processor", f"{cores} with AVX512, no bfloat16 arithmetic: models run in float32")
    if "avx2" in here.cpu_flags:
        says = f"{cores} with AVX2 and no AVX512: models run in float32, and GPTQ and AWQ weights have no CPU kernel"
        return Finding("note", "processor", says)
    level: Literal["note", "bad"] = "bad" if here.vllm_cpu else "note"
    return Finding(level, "processor", f"{cores} without AVX2: vllm-cpu cannot run here; use a GPU or --upstream")


def memory(here: Machine) -> Finding:
    says = f"{here.available_bytes / GIB:.1f} of {here.memory_bytes / GIB:.1f} GiB free"
    if here.available_bytes < LEAST_BYTES:
        return Finding("note", "memory", f"{says}: an engine needs about 3 GiB beside the weights; end other programs")
    return Finding("good", "memory", says)


def gpu(here: Machine) -> Finding:
    if here.gpus:
        wrong = here.vllm_cpu and not here.vllm_gpu
        advice = ", unused: `make install EXTRA=gpu` in a new .venv" if wrong else ""
        return Finding("note" if wrong else "good", "GPU", ", ".join(here.gpus) + advice)
    if here.vllm_gpu:
        return Finding("bad", "GPU", "none is visible to nvidia-smi: install the driver, or `make install EXTRA=cpu`")
    return Finding("good", "GPU", "none; the CPU engine is used")


def torch(here: Machine) -> Finding:
    if importlib.util.find_spec("torch") is None:
        level: Literal["good", "bad"] = "bad" if here.vllm_cpu or here.vllm_gpu else "good"
        return Finding(level, "torch", "not installed" + (": `make install` again" if level == "bad" else ""))
    from importlib.metadata import version

    build = version("torch")
    if here.vllm_cpu and not build.endswith("+cpu"):
        return Finding(
            "bad", "torch", f"{build} is not the CPU build that vllm-cpu needs: remove .venv, `make install`"
        )
    return Finding("good", "torch", build)


def state() -> Finding:
    try:
        folder = home()
        marker = folder / ".writable"
        marker.touch()
        marker.unlink()
    except OSError as error:
        return Finding("bad", "state", f"cannot write: {error}; set PENSTOCK_HOME to a folder of yours")
    return Finding("good", "state", str(folder))


def demo() -> Finding:
    weights = DEMO / "model.safetensors"
    if not weights.is_file():
        return Finding("bad", "demo model", f"{weights} is missing: check the repository out again")
    return Finding("good", "demo model", f"{weights.stat().st_size / 2**20:.1f} MiB at {DEMO}")
