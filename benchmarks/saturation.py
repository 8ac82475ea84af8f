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

PROMPTS = 64
LETTERS = "etaoinshrdlu"
BARE = "bare engine"
PENSTOCK = "Penstock"


@dataclass(frozen=True)
class Round:
    """One way's figures in one round."""

    tokens_per_s: float
    first_token_s: float
    last_percent_s: float


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    clients: Annotated[int, typer.Option(help="Streams at a time")] = 32,
    requests: Annotated[int, typer.Option(help="Streams in each round and way")] = 256,
    prompt_words: int = 40,
    tokens: Annotated[int, typer.Option(help="The length of every answer")] = 64,
    json_file: Annotated[Path | None, typer.Option("--json", help="Every figure of every round")] = None,
) -> None:
    """Prints medians over the rounds, with the smallest and the largest in brackets, and each round's ratios."""
    with tempfile.TemporaryDirectory(prefix="saturation-") as name, bare_engine("bare", {}, Path(name)) as engine:
        folder = Path(name)
        bodies = folder / "bodies.jsonl"
        bodies.write_text("\n".join(body(random.Random(n), prompt_words, tokens) for n in range(PROMPTS)))
        gateway = penstock([engine], free_port(), folder, PENSTOCK, model="demo")
        with running(gateway, None, folder):
            ways = {BARE: engine, PENSTOCK: gateway.url}
            found: dict[str, list[Round]] = {way: [] for way in ways}
            for number in range(rounds + 1):  # the first warms up and is thrown away
                for way in list(ways)[:: 1 if number % 2 == 0 else -1]:
                    one = measured(ways[way], bodies, clients, requests, tokens)
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


def measured(url: str, bodies: Path, clients: int, requests: int, tokens: int) -> Round:
    """Raises SystemExit if any stream was not whole."""
    command = [sys.executable, "-m", "benchmarks.load", url, "--bodies", str(bodies), "--stream", "--times"]
    command += ["--clients", str(clients), "--requests", str(requests)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    load = Load(**json.loads(answer.stdout))
    if load.errors:
        raise SystemExit(f"{url}: {load.errors}")
    return Round(
        tokens_per_s=load.completed * tokens / load.wall_s,
        first_token_s=percentile(load.first_token_s, 50),
        last_percent_s=percentile(load.first_token_s, 99),
    )


def report(found: Mapping[str, Sequence[Round]]) -> str:
    rows = [
        [
            way,
            spread([one.tokens_per_s for one in rounds]),
            spread([1000 * one.first_token_s for one in rounds], 1),
            spread([1000 * one.last_percent_s for one in rounds], 1),
        ]
        for way, rounds in found.items()
    ]
    pairs = list(zip(found[PENSTOCK], found[BARE], strict=True))
    rows.append(
        [
            f"{PENSTOCK} / {BARE}, round by round",
            spread([through.tokens_per_s / bare.tokens_per_s for through, bare in pairs], 3),
            spread([through.first_token_s / bare.first_token_s for through, bare in pairs], 3),
            spread([through.last_percent_s / bare.last_percent_s for through, bare in pairs], 3),
        ]
    )
    return markdown(["", "tokens/s", "first token p50, ms", "first token p99, ms"], rows)


if __name__ == "__main__":
    typer.run(main)
