"""One vLLM without a gateway, started with the flags and the environment that Penstock would choose, on a TCP port."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.contestants import free_port
from benchmarks.processes import started
from engine.launch import plan
from engine.machine import detect
from penstock.config import Engine

START_S = 300
POLL_S = 0.2


@dataclass(frozen=True)
class Bare:
    url: str
    pid: int


@contextmanager
def bare_engine(
    name: str,
    options: Mapping[str, Any],
    folder: Path,
    *,
    sharing: int = 1,
    model: str = "demo",
    env: Mapping[str, str] | None = None,
) -> Iterator[Bare]:
    """`model`, by the name of `demo`, once it generates; `sharing` engines share this machine. Raises SystemExit."""
    port = free_port()
    engine = Engine.model_validate({"model": model, "options": dict(options), "env": dict(env or {})})
    launch = plan(name, engine, ["demo"], detect().shared_by(sharing), folder / "x")
    words = list(launch.argv)
    at = words.index("--uds")
    words[at : at + 2] = ["--host", "127.0.0.1", "--port", str(port)]
    log = folder / f"{name}.log"
    with log.open("wb") as output, started(words, None, output, launch.env) as process:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_S
        while not generates(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the engine did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(POLL_S)
        yield Bare(url, process.pid)


def generates(url: str) -> bool:
    try:
        body = {"model": "demo", "prompt": "a", "max_tokens": 1}
        return httpx2.post(f"{url}/v1/completions", json=body, timeout=START_S, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False
