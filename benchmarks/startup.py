"""From the command to the first token, and where the time goes: `python -m benchmarks.startup --rounds 3`.

Three ways to start the same model are taken in turn, round by round, so that whatever else the machine does falls on
all of them: `penstock serve`; bare `vllm serve` with the flags and the environment that Penstock chose; and bare
`vllm serve` with vLLM's own split into processes, which on a CPU imports everything once more.
"""

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx2
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.contestants import free_port
from benchmarks.figures import median
from engine.launch import plan
from engine.machine import detect
from penstock.config import Engine

POLL_S = 0.05
GIVE_UP_S = 600

# What the engine has behind it when it writes the first line that matches, in the order of a start.
PHASES = (
    ("the API server's imports", re.compile(r"APIServer.*Resolved architecture|APIServer.*non-default args")),
    ("the engine core's imports", re.compile(r"Initializing a V1 LLM engine")),
    ("building the model", re.compile(r"Starting to load model")),
    ("the weights", re.compile(r"Loading weights took")),
    ("KV cache and warm-up", re.compile(r"init engine \(")),
    ("the HTTP server", re.compile(r"Application startup complete|Starting vLLM server on")),
)


@dataclass
class Start:
    """One start: seconds to the first token, CPU-seconds of all its processes, seconds until each phase was over."""

    first_token_s: float = 0.0
    cpu_s: float = 0.0
    reached_s: dict[str, float] = field(default_factory=dict)


def main(
    model: Annotated[str, typer.Option(help="As in the configuration: demo, a folder, or a Hugging Face id")] = "demo",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Prints the medians, side by side."""
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        ways = commands(model, Path(folder))
        starts: dict[str, list[Start]] = {name: [] for name in ways}
        for number in range(rounds + 1):  # the first is for the page cache and is thrown away
            for name, (command, env, socket_path) in ways.items():
                start = measured(command, env, socket_path)
                note = "warming up" if number == 0 else f"round {number}"
                typer.echo(f"{note}: {name}: {start.first_token_s:.1f} s, {start.cpu_s:.1f} CPU-s", err=True)
                if number:
                    starts[name].append(start)
    show(starts)


def commands(model: str, folder: Path) -> dict[str, tuple[Sequence[str], Mapping[str, str], Path | int]]:
    """Each way's command, what is added to its environment, and where it answers: a Unix socket or a port."""
    launch = plan("base-0", Engine(model=model), ["demo"], detect(), folder / "bare.sock")
    port = free_port()
    penstock = [str(Path(sys.executable).parent / "penstock"), "serve", "--port", str(port)]
    here = {"PENSTOCK_HOME": str(folder), "PENSTOCK_ENGINES__BASE__MODEL": model, "PENSTOCK_LOG__STYLE": "text"}
    split = {name: value for name, value in launch.env.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    return {
        "penstock serve": (penstock, here, port),
        "vllm serve, the same flags": (launch.argv, launch.env, launch.socket),
        "vllm serve, its own processes": (launch.argv, split, launch.socket),
    }


def measured(command: Sequence[str], env: Mapping[str, str], place: Path | int) -> Start:
    """Starts, waits for the first token, stops."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
    before = cpu_s()
    began = time.monotonic()
    start = Start()
    process = subprocess.Popen(
        command,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=read, args=(process, began, start, lines), daemon=True)
    reader.start()
    try:
        until_first_token(process, place, lines)
        start.first_token_s = time.monotonic() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        reader.join(10)
    start.cpu_s = cpu_s() - before
    return start


def read(process: subprocess.Popen[str], began: float, start: Start, lines: list[str]) -> None:
    assert process.stdout
    for line in process.stdout:
        lines.append(line)
        for name, mark in PHASES:
            if name not in start.reached_s and mark.search(line):
                start.reached_s[name] = time.monotonic() - began


def until_first_token(process: subprocess.Popen[str], place: Path | int, lines: Sequence[str]) -> None:
    transport = httpx2.HTTPTransport(uds=str(place)) if isinstance(place, Path) else httpx2.HTTPTransport()
    url = "http://engine" if isinstance(place, Path) else f"http://127.0.0.1:{place}"
    body = {"model": "demo", "prompt": "a", "max_tokens": 1}
    deadline = time.monotonic() + GIVE_UP_S
    with httpx2.Client(transport=transport, base_url=url, timeout=GIVE_UP_S) as client:
        while True:
            try:
                if client.post("/v1/completions", json=body).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("it did not start:\n" + "".join(lines[-20:]))
            time.sleep(POLL_S)


def show(starts: Mapping[str, Sequence[Start]]) -> None:
    table = Table(title="From the command to the first token: medians, seconds")
    for heading in ("", *starts):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("first token", *(f"{median(s.first_token_s for s in runs):.1f}" for runs in starts.values()))
    table.add_row("CPU-seconds, all processes", *(f"{median(s.cpu_s for s in runs):.1f}" for runs in starts.values()))
    base = median(start.first_token_s for start in starts["vllm serve, the same flags"])
    ratios = (median(start.first_token_s for start in runs) / base for runs in starts.values())
    table.add_row("first token, as a ratio", *(f"{ratio:.2f}" for ratio in ratios), end_section=True)
    for number, (name, _) in enumerate(PHASES):
        earlier = [phase for phase, _ in PHASES[:number]]
        table.add_row(
            name, *(f"{median(length(start, name, earlier) for start in runs):.1f}" for runs in starts.values())
        )
    Console().print(table)


def length(start: Start, phase: str, earlier: Sequence[str]) -> float:
    """What the phase took: from the latest earlier phase that was seen."""
    ended = start.reached_s.get(phase)
    began = max((start.reached_s.get(name, 0.0) for name in earlier), default=0.0)
    return max(0.0, ended - began) if ended is not None else 0.0


def cpu_s() -> float:
    """CPU time of every process that was started here and has ended, its children included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    typer.run(main)
