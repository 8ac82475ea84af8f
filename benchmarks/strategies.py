"""Prompt strategies on one engine: what each gets right, and what a right answer costs.

    python -m benchmarks.strategies
    python -m benchmarks.strategies --config penstock.yaml --task FILE --url http://127.0.0.1:8000

starts the gateway of recipes/strategies.yaml, or asks the one at `--url`, and puts each task to every served model of
the configuration, the first of which the others are compared with. On standard output are the tables, in Markdown, each
with its command; `--out` keeps every answer, and goes on with those that are there.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from benchmarks.contestants import free_port
from benchmarks.loop import PENSTOCK, START_S, is_ready

CONFIG = Path(__file__).parents[1] / "recipes" / "strategies.yaml"
TASKS = ("passages", "extraction")
# So warm that a sample of the demo is wrong now and then: at 1 it is surer than a hundred items can show.
TEMPERATURE = 1.6


def main() -> None:
    parser = argparse.ArgumentParser(description="Prompt strategies beside each other.")
    parser.add_argument(
        "--config", type=Path, default=CONFIG, help="its served models are compared, the first is plain"
    )
    parser.add_argument("--url", help="a gateway that serves them already")
    parser.add_argument("--task", action="append", help=f"as of `penstock eval` [default: {', '.join(TASKS)}]")
    parser.add_argument("--limit", type=int, default=200, help="items of each")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help="of the answers")
    parser.add_argument("--out", type=Path, help="a folder for every answer")
    given = parser.parse_args()
    models = list(yaml.safe_load(given.config.read_text())["models"])
    sampled = ["--limit", str(given.limit), "--temperature", f"{given.temperature:g}"]
    with serving(given.config, given.url) as url:
        for task in given.task or TASKS:
            print(compared(task, models, url, sampled, given.out), flush=True)


def compared(task: str, models: Sequence[str], url: str, sampled: Sequence[str], out: Path | None) -> str:
    """A command and the table that it prints; items without an answer are told on standard error, and count as wrong.
    Raises SystemExit where there is no table."""
    named = [word for model in models for word in ("--model", model)]
    words = ["eval", task, *named, *sampled, "--markdown"]
    kept = ["--out", str(out / Path(task).stem)] if out else []
    done = subprocess.run([PENSTOCK, *words, "--base-url", url, *kept], stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout:
        raise SystemExit(f"penstock {shlex.join(words)} ended with {done.returncode}")
    return f"$ penstock {shlex.join(words)}\n\n{done.stdout}"


@contextmanager
def serving(config: Path, url: str | None) -> Iterator[str]:
    """The address of a gateway that is ready; one that was started for it is ended, its log is on standard error."""
    if url:
        yield url
        return
    port = free_port()
    command = [PENSTOCK, "serve", "--config", str(config), "--port", str(port)]
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(command, env=os.environ | {"PENSTOCK_HOME": home}, stdout=sys.stderr)
        try:
            deadline = time.monotonic() + START_S
            while not is_ready(f"http://127.0.0.1:{port}"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the gateway is not ready; what it says stands above")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(START_S)


if __name__ == "__main__":
    main()
