"""What is lost before an engine that is fully busy: `python -m benchmarks.saturation --rounds 5`.

One engine, with the demo model; the same streams straight to it and through Penstock, in turn. Prompts are random and
answers of one length, whatever the model would like, so that both ways have exactly the same work. On one machine the
gateway takes its time from the same cores as the engine, as it would in use.
"""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.bare_engine import bare_engine
from benchmarks.client import NUMBER
from benchmarks.contestants import free_port, penstock, running
from benchmarks.figures import markdown, percentile, spread
from benchmarks.load import Load
from benchmarks.processes import end_in_order

PROMPTS = 64
LETTERS = "etaoinshrdlu"
BARE = "bare engine"
PENSTOCK = "Penstock"


@dataclass(frozen=True)
class Round:
    """One way's figures in one round; CPU time is per token, the engine's share of one core."""

    tokens_per_s: float
    first_token_s: float
    last_percent_s: float
    engine_cpu_us: float
    gateway_cpu_us: float
    engine_share: float


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    clients: Annotated[int, typer.Option(help="Streams at a time")] = 32,
    requests: Annotated[int, typer.Option(help="Streams in each round and way")] = 256,
    prompt_words: int = 40,
    tokens: Annotated[int, typer.Option(help="The length of every answer")] = 64,
    json_file: Annotated[Path | None, typer.Option("--json", help="Every figure of every round")] = None,
) -> None:
    """Prints medians over the rounds, with the smallest and the largest in brackets, and each round's ratios."""
    end_in_order()
    with tempfile.TemporaryDirectory(prefix="saturation-") as name, bare_engine("bare", {}, Path(name)) as engine:
        folder = Path(name)
        bodies = folder / "bodies.jsonl"
        bodies.write_text("\n".join(body(random.Random(n), prompt_words, tokens) for n in range(PROMPTS)))
        gateway = penstock([engine.url], free_port(), folder, PENSTOCK, model="demo")
        with running(gateway, None, folder) as pid:
            ways = {BARE: engine.url, PENSTOCK: gateway.url}
            found: dict[str, list[Round]] = {way: [] for way in ways}
            for number in range(rounds + 1):  # the first warms up and is thrown away
                for way in list(ways)[:: 1 if number % 2 == 0 else -1]:
                    one = measured(ways[way], bodies, clients, requests, tokens, (engine.pid, pid))
                    typer.echo(f"round {number}: {way}: {one}", err=True)
                    if number:
                        found[way].append(one)
    typer.echo(report(found))
    if json_file:
        json_file.write_text(json.dumps(found, indent=1, default=asdict))


def body(words: random.Random, prompt_words: int, tokens: int) -> str:
    """A prompt nobody has seen: the request's own number comes first, so that no cached prefix helps."""
    text = " ".join("".join(words.choices(LETTERS, k=words.randint(2, 8))) for _ in range(prompt_words))
    messages = [{"role": "user", "content": f"{NUMBER.decode()} {text}"}]
    request = {"model": "demo", "messages": messages, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    return json.dumps(request, separators=(",", ":"))


def measured(url: str, bodies: Path, clients: int, requests: int, tokens: int, pids: tuple[int, int]) -> Round:
    """`pids`: the engine's, the gateway's. Raises SystemExit if any stream was not whole."""
    command = [sys.executable, "-m", "benchmarks.load", url, "--bodies", str(bodies), "--stream", "--times"]
    command += ["--clients", str(clients), "--requests", str(requests)]
    command += [word for pid in pids for word in ("--watch", str(pid))]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    load = Load(**json.loads(answer.stdout))
    if load.errors:
        raise SystemExit(f"{url}: {load.errors}")
    return Round(
        tokens_per_s=load.completed * tokens / load.wall_s,
        first_token_s=percentile(load.first_token_s, 50),
        last_percent_s=percentile(load.first_token_s, 99),
        engine_cpu_us=1e6 * load.watched_cpu_s[0] / (load.completed * tokens),
        gateway_cpu_us=1e6 * load.watched_cpu_s[1] / (load.completed * tokens),
        engine_share=load.watched_cpu_s[0] / load.wall_s,
    )


def report(found: Mapping[str, Sequence[Round]]) -> str:
    """A row for each way, and one of the ratios that belong to the same round."""
    names = ("tokens_per_s", "first_token_s", "last_percent_s", "engine_cpu_us", "gateway_cpu_us", "engine_share")
    scales = (1, 1000, 1000, 1, 1, 100)
    rows = []
    for way, rounds in found.items():
        columns = ([scale * getattr(one, name) for one in rounds] for name, scale in zip(names, scales, strict=True))
        rows.append([way, *(spread(column, 1) for column in columns)])
    pairs = list(zip(found[PENSTOCK], found[BARE], strict=True))
    ratios = ([getattr(through, name) / getattr(bare, name) for through, bare in pairs] for name in names[:4])
    rows.append(["the ratio, round by round", *(spread(column, 3) for column in ratios), "", ""])
    headings = ["", "tokens/s", "first token p50, ms", "first token p99, ms"]
    headings += ["engine's CPU us/token", "gateway's CPU us/token", "engine, % of a core"]
    return markdown(headings, rows)


if __name__ == "__main__":
    typer.run(main)
