"""What the steps of a served model cost in the gateway's process: CPU for each token, and time before each piece.

    python -m benchmarks.steps --rounds 8

One gateway serves the scripted engine twice: bare, and behind steps. Streams of the same texts are asked for in turns,
and the gateway's own CPU time is read around each. The first pass over a text is told apart: words that the guards
have not seen before are looked at (`guards/skimming.py`).
"""

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import yaml

from benchmarks.figures import markdown, median
from benchmarks.processes import cpu_s, stop, tree

TOKENS = 2000
PACE_S = 0.002
STEPS: list[Any] = [
    {"instruct": {"text": "Answer in the fewest words."}},
    {"guard": "strict"},
    {"guard": "injection"},
]
GUARDS = {"strict": [{"pii": {"unmask": True}}, {"secrets": {"action": "block"}}]}


@dataclass
class Seen:
    """Of one model: CPU microseconds for each token, milliseconds to the first piece and between two."""

    cpu_us: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    between_ms: list[float] = field(default_factory=list)


def texts_of(files: list[Path], count: int) -> list[str]:
    """So many different ones of TOKENS words each. Raises SystemExit."""
    words = [word for file in files for word in re.findall(r"\S+", file.read_text(encoding="utf-8"))]
    if len(words) < count * TOKENS:
        raise SystemExit(f"{count} texts need {count * TOKENS} words, and the files have {len(words)}")
    return [" ".join(words[start : start + TOKENS]) for start in range(0, count * TOKENS, TOKENS)]


def configured(texts: list[str], steps: list[Any], port: int) -> dict[str, Any]:
    engines: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for number, text in enumerate(texts):
        for name, pace_s in ((f"fast{number}", 0), (f"paced{number}", PACE_S)):
            said = text if pace_s == 0 else " ".join(text.split(" ")[:200])
            engines[name] = {"kind": "scripted", "options": {"answers": [said], "pace_s": pace_s}}
            models[f"{name}-bare"] = {"engine": name}
            models[f"{name}-steps"] = {"engine": name, "steps": steps}
    return {
        "gateway": {"port": port},
        "engines": engines,
        "models": models,
        "guards": GUARDS,
        "log": {"level": "error"},
    }


async def warmed(client: httpx2.AsyncClient, model: str) -> None:
    """Memory that has lain idle for a tenth of a second can be ten times as slow on a virtual machine, and who has
    more of it would pay for that."""
    await streamed(client, model, max_tokens=20)


async def streamed(client: httpx2.AsyncClient, model: str, **more: Any) -> tuple[int, list[float]]:
    """How many tokens came, and when each piece did, in seconds since the request."""
    body = {
        "model": model,
        **more,
        "messages": [{"role": "user", "content": "Go on."}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, times, tokens = time.perf_counter(), [], 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if '"content":"' in line and '"content":""' not in line:
                times.append(time.perf_counter() - began)
            elif '"usage":{' in line:
                tokens = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
    return tokens, times


async def measured(url: str, pid: int, texts: int, rounds: int) -> dict[str, Seen]:
    """In turns, so that what disturbs one disturbs the other."""
    seen: dict[str, Seen] = {name: Seen() for name in ("bare", "steps", "bare, first pass", "steps, first pass")}
    async with httpx2.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        for pass_ in range(rounds + 1):
            for number in range(texts):
                for kind in sorted(("bare", "steps"), reverse=pass_ % 2 == 1):  # neither is always the second
                    if pass_:
                        await warmed(client, f"fast{number}-{kind}")
                    before = cpu_s(tree(pid))
                    tokens, _ = await streamed(client, f"fast{number}-{kind}")
                    spent = cpu_s(tree(pid)) - before
                    seen[kind if pass_ else f"{kind}, first pass"].cpu_us.append(1e6 * spent / tokens)
            for kind in ("bare", "steps"):
                await warmed(client, f"paced{pass_ % texts}-{kind}")
                _, times = await streamed(client, f"paced{pass_ % texts}-{kind}")
                seen[kind].first_ms.append(1e3 * times[0])
                seen[kind].between_ms += [1e3 * (after - before) for before, after in pairwise(times)]
    return seen


async def until_ready(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url, trust_env=False) as client, asyncio.timeout(60):
        while True:
            try:
                if (await client.get("/ready")).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            await asyncio.sleep(0.1)


def report(seen: dict[str, Seen]) -> str:
    base = {name: median(seen[name].cpu_us) for name in ("bare", "bare, first pass")}
    rows = []
    for name, figures in seen.items():
        first = base["bare, first pass" if "first" in name else "bare"]
        rows.append(
            [
                name,
                f"{median(figures.cpu_us):.1f}",
                f"{median(figures.cpu_us) / first:.2f}",
                f"{median(figures.first_ms):.1f}" if figures.first_ms else "",
                f"{median(figures.between_ms):.2f}" if figures.between_ms else "",
            ]
        )
    heads = ["", "CPU µs/token", "of bare", "first piece, ms", "between pieces, ms"]
    return markdown(heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--texts", type=int, default=3)
    parser.add_argument("--from", dest="files", type=Path, nargs="+", default=sorted(Path("docs/design").glob("*.md")))
    parser.add_argument("--steps", type=json.loads, default=STEPS, help="as in a configuration, in JSON")
    given = parser.parse_args()
    texts = texts_of(given.files, given.texts)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "penstock.yaml"
        file.write_text(yaml.safe_dump(configured(texts, given.steps, port)))
        command = [sys.executable, "-c", "from penstock.cli import app; app()", "serve", "--config", str(file)]
        process = subprocess.Popen(command, env={**os.environ, "PENSTOCK_HOME": folder})
        try:
            url = f"http://127.0.0.1:{port}"
            asyncio.run(until_ready(url))
            seen = asyncio.run(measured(url, process.pid, given.texts, given.rounds))
        finally:
            stop(process)
    print(report(seen))


if __name__ == "__main__":
    main()
