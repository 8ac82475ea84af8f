"""A dense model and its quantized forms, each in a vLLM of its own, measured in turn:

    python -m benchmarks.quantized runs/demo-gptq/model runs/demo-awq/model runs/demo-int8/model --dense demo

Of each form of four bits there are three: by vLLM's kernel; the same with activations rounded to eight bits, vLLM's own
default where the processor has AMX; dequantized while loading, as where vLLM has no kernel. On a GPU there are two: by
the kernel that vLLM takes, and without Machete, its own for Hopper. Perplexity and tokens are asked for over HTTP, of
all in every round, one after the other in an order that turns round by round.
"""

import asyncio
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer

from benchmarks.bare_engine import Bare, bare_engine
from benchmarks.figures import markdown, median, ratio, spread
from benchmarks.processes import cpu_s, end_in_order, tree
from engine.launch import model_path
from engine.machine import Machine, detect
from engine.quantized import of_folder
from evals.perplexity import perplexity
from evals.served import Served

TIMEOUT_S = 300
KV_BYTES = {"cpu": 2**28, "gpu": 2**32}
WARM_TOKENS = 8


@dataclass(frozen=True)
class Form:
    """A folder, and the environment that chooses how it is computed."""

    name: str
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))


@dataclass
class Found:
    perplexity: float = 0.0
    rates: dict[int, list[float]] = field(default_factory=dict)
    """Tokens a second of each round, by the number of requests at a time."""
    cpu_ms: list[float] = field(default_factory=list)


def forms(folder: Path, machine: Machine) -> Iterator[Form]:
    how = of_folder(folder)
    if how is None:
        raise SystemExit(f"{folder} is not quantized by GPTQ, AWQ or int8")
    if how.bits == 8:
        yield Form(how.method, folder)
        return
    if machine.device == "gpu":
        yield Form(how.method, folder)
        yield Form(f"{how.method}, without Machete", folder, {"VLLM_DISABLED_KERNELS": "MacheteLinearKernel"})
        return
    if machine.bfloat16:
        yield Form(how.method, folder, {"VLLM_CPU_INT4_W4A8": "0"})
        yield Form(f"{how.method}, activations of 8 bits", folder, {"VLLM_CPU_INT4_W4A8": "1"})
    yield Form(f"{how.method}, dequantized", folder, {"VLLM_DISABLED_KERNELS": "CPUWNA16LinearKernel"})


def main(
    quantized: Annotated[list[Path], typer.Argument(help="Folders that training.quantize has written")],
    dense: Annotated[str, typer.Option(help="`demo`, or a folder: what they were made from")] = "demo",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    tokens: Annotated[int, typer.Option(help="Of each answer")] = 128,
    at_once: Annotated[list[int] | None, typer.Option(help="Requests at a time, beside 1; else 16")] = None,
    text: Annotated[Path | None, typer.Option(help="For perplexity; else what the first folder's run used")] = None,
    options: Annotated[str, typer.Option(help="vLLM's flags for all of them, as JSON")] = "{}",
    json_file: Annotated[Path | None, typer.Option("--json", help="Every figure of every round")] = None,
) -> None:
    """Prints medians over the rounds, with the smallest and the largest in brackets."""
    end_in_order()
    machine, together = detect(), [1, *(at_once or [16])]
    found = [Form("dense", Path(model_path(dense))), *(form for one in quantized for form in forms(one, machine))]
    read = (text or quantized[0].parent / "evaluation.txt").read_text(encoding="utf-8")
    results = [Found(rates={many: [] for many in together}) for _ in found]
    flags: dict[str, Any] = {"max-num-seqs": max(together), "enable-prefix-caching": False}
    flags["kv-cache-memory-bytes"] = KV_BYTES[machine.device]
    if machine.device == "gpu":
        flags["gpu-memory-utilization"] = math.floor(90 / len(found)) / 100
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quantized-")))

        def start(number: int) -> Bare:
            typer.echo(f"starting {found[number].name}", err=True)
            given, env = flags | json.loads(options), found[number].env
            model = str(found[number].folder)
            one = bare_engine(f"e{number}", given, folder, model=model, env=env, sharing=len(found))
            return stack.enter_context(one)

        # A GPU's processor has cores for all of them to compile at once.
        with ThreadPoolExecutor(1 if machine.device == "cpu" else len(found)) as pool:
            engines = list(pool.map(start, range(len(found))))
        for engine, result in zip(engines, results, strict=True):
            result.perplexity = asyncio.run(of_text(engine.url, read))
            for many in together:
                asyncio.run(rate(engine.url, many, WARM_TOKENS))
        for number in range(rounds):
            for at in range(len(found)):
                engine, result = engines[(at + number) % len(found)], results[(at + number) % len(found)]
                before = cpu_s(tree(engine.pid))
                for many in together:
                    result.rates[many].append(asyncio.run(rate(engine.url, many, tokens)))
                result.cpu_ms.append(1000 * (cpu_s(tree(engine.pid)) - before) / (tokens * sum(together)))
            typer.echo(f"round {number + 1} of {rounds}", err=True)
        # Before the engines end, which takes a while.
        typer.echo(report(found, results))
        if json_file:
            told = [{"name": form.name, **asdict(one)} for form, one in zip(found, results, strict=True)]
            json_file.write_text(json.dumps(told))


async def of_text(url: str, text: str) -> float:
    source = Served(url, "demo")
    try:
        return (await perplexity(text, source)).token_perplexity
    finally:
        source.close()


async def rate(url: str, at_once: int, tokens: int) -> float:
    """Tokens a second of `at_once` answers together, none of which ends early."""
    body = {"model": "demo", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
        begun = time.perf_counter()
        answers = await asyncio.gather(*(ask(client, {**body, "prompt": f"Story {n}:"}) for n in range(at_once)))
        seconds = time.perf_counter() - begun
    return sum(answers) / seconds


async def ask(client: httpx2.AsyncClient, body: Mapping[str, Any]) -> int:
    answer = await client.post("/v1/completions", json=dict(body))
    answer.raise_for_status()
    return int(answer.json()["usage"]["completion_tokens"])


def report(found: Sequence[Form], results: Sequence[Found]) -> str:
    first = results[0]
    headings = ["", "bytes", "perplexity"]
    for many in first.rates:
        headings += [f"tokens/s, {many}", "of dense"]
    rows = []
    for form, one in zip(found, results, strict=True):
        row = [form.name, f"{form.bytes:,}", f"{one.perplexity:.4f}"]
        for many, rates in one.rates.items():
            row += [spread(rates), ratio(paired(rates, first.rates[many]), 1)]
        rows.append([*row, spread(one.cpu_ms, 2)])
    return markdown([*headings, "CPU-ms/token"], rows)


def paired(values: Sequence[float], base: Sequence[float]) -> float:
    """The median of each round's ratio: what slows a round slows both."""
    return median([one / other for one, other in zip(values, base, strict=True)])


if __name__ == "__main__":
    typer.run(main)
