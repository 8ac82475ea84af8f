"""What prefix affinity gains on two real engines: `python -m benchmarks.affinity --rounds 3`.

Conversations grow turn by turn behind long system prompts that several of them share. Their KV cache fits into both
engines together and not into one: with affinity each engine keeps its half, without it both are asked for all. The
same engines serve both ways in turn, every run with prompts of its own, so that neither profits from the other. The
hits and the times to the first token are the engines' own figures.
"""

import asyncio
import json
import random
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import httpx2
import orjson
import typer

from benchmarks.bare_engine import bare_engine
from benchmarks.contestants import free_port, penstock, running
from benchmarks.figures import markdown, median, percentile, ratio, spread
from benchmarks.processes import end_in_order

Way = Literal["prefix", "off"]
WAYS: tuple[Way, ...] = ("prefix", "off")
SWITCH = "PENSTOCK_ENGINES__DEMO__ROUTING__AFFINITY"
BLOCK_TOKENS = 32
TIMEOUT_S = 120
WORDS = "water gate wheel river pipe valve turn flow press rise fall stone field night clear slow bright".split()
HITS, QUERIES = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
FIRST_S, FIRST_COUNT = "vllm:time_to_first_token_seconds_sum", "vllm:time_to_first_token_seconds_count"


@dataclass(frozen=True)
class Workload:
    """How many conversations, how long. A word is about two of the demo model's tokens."""

    conversations: int
    systems: int
    turns: int
    at_once: int
    system_words: int = 400
    turn_words: int = 30
    answer_tokens: int = 24


@dataclass(frozen=True)
class Run:
    """What one run of the workload found."""

    hit_share: float
    first_token_s: float
    seen_first_token_s: float
    slowest_s: float
    wall_s: float
    prompt_tokens: float


@dataclass
class Conversation:
    messages: list[dict[str, str]]
    words: random.Random
    first_token_s: list[float] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    conversations: int = 24,
    systems: Annotated[int, typer.Option(help="System prompts, each shared by some of the conversations")] = 12,
    turns: int = 8,
    at_once: Annotated[int, typer.Option(help="Conversations that wait for an answer at a time")] = 8,
    kv_tokens: Annotated[int, typer.Option(help="What the KV cache of one engine holds")] = 20480,
    json_file: Annotated[Path | None, typer.Option("--json", help="Every figure of every round")] = None,
) -> None:
    """Prints medians over the rounds, with the smallest and the largest in brackets."""
    end_in_order()
    workload = Workload(conversations, systems, turns, at_once)
    options = {"enable-prefix-caching": True, "block-size": BLOCK_TOKENS}
    options["num-gpu-blocks-override"] = kv_tokens // BLOCK_TOKENS
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="affinity-")))
        engines = [stack.enter_context(bare_engine(f"engine-{n}", options, folder, sharing=2)).url for n in range(2)]
        gateways = {way: penstock(engines, free_port(), folder, way, model="demo", env={SWITCH: way}) for way in WAYS}
        for gateway in gateways.values():
            stack.enter_context(running(gateway, None, folder))
        runs: dict[str, list[Run]] = {way: [] for way in WAYS}
        for number in range(rounds + 1):  # the first warms the engines up and is thrown away
            for way in WAYS[:: 1 if number % 2 == 0 else -1]:
                run = asyncio.run(measured(gateways[way].url, engines, workload, f"{number} {way}"))
                typer.echo(f"round {number}: {way}: {run}", err=True)
                runs[way] += [run] if number else []
    typer.echo(report(runs))
    if json_file:
        json_file.write_text(json.dumps({"workload": asdict(workload), "runs": runs}, indent=1, default=asdict))


async def measured(gateway: str, engines: Sequence[str], workload: Workload, label: str) -> Run:
    """One run; `label` begins every prompt of it."""
    talks = opened(workload, label)
    limits = httpx2.Limits(max_connections=workload.at_once)
    async with httpx2.AsyncClient(timeout=TIMEOUT_S, trust_env=False, limits=limits) as client:
        before = await figures(client, engines)
        began = time.perf_counter()
        await talked(client, gateway, workload, talks)
        wall_s = time.perf_counter() - began
        after = await figures(client, engines)
    gained = {name: after[name] - before[name] for name in after}
    return Run(
        hit_share=gained[HITS] / gained[QUERIES],
        first_token_s=gained[FIRST_S] / gained[FIRST_COUNT],
        seen_first_token_s=percentile((s for talk in talks for s in talk.first_token_s), 50),
        slowest_s=max(s for talk in talks for s in talk.answered_s),
        wall_s=wall_s,
        prompt_tokens=gained[QUERIES] / gained[FIRST_COUNT],
    )


def opened(workload: Workload, label: str) -> list[Conversation]:
    """The conversations before their first turn."""
    systems = [
        f"Run {label}, prompt {n}. {prose(random.Random(f'{label} {n}'), workload.system_words)}"
        for n in range(workload.systems)
    ]
    return [
        Conversation([{"role": "system", "content": systems[n % len(systems)]}], random.Random(f"{label} turn {n}"))
        for n in range(workload.conversations)
    ]


def prose(words: random.Random, count: int) -> str:
    return " ".join(words.choices(WORDS, k=count))


async def talked(client: httpx2.AsyncClient, gateway: str, workload: Workload, talks: Sequence[Conversation]) -> None:
    """Every conversation has its turn, then all have their next; `at_once` of them wait for an answer at a time."""
    places = asyncio.Semaphore(workload.at_once)

    async def turn(talk: Conversation) -> None:
        async with places:
            talk.messages.append({"role": "user", "content": prose(talk.words, workload.turn_words)})
            talk.messages.append({"role": "assistant", "content": await asked(client, gateway, talk, workload)})

    for _ in range(workload.turns):
        async with asyncio.TaskGroup() as tasks:
            for talk in talks:
                tasks.create_task(turn(talk))


async def asked(client: httpx2.AsyncClient, gateway: str, talk: Conversation, workload: Workload) -> str:
    """The answer's text. Raises SystemExit if it is not whole."""
    body = {"model": "demo", "messages": talk.messages, "max_tokens": workload.answer_tokens, "temperature": 0}
    began = time.perf_counter()
    pieces: list[str] = []
    first_s = 0.0
    last = ""
    async with client.stream(
        "POST", f"{gateway}/v1/chat/completions", json=body | {"stream": True, "ignore_eos": True}
    ) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                pieces += [choice["delta"].get("content") or "" for choice in orjson.loads(line[6:])["choices"]]
                first_s = first_s or (any(pieces) and time.perf_counter() - began)
            last = line or last
    if answer.status_code != 200 or last != "data: [DONE]":
        raise SystemExit(f"{gateway} answered {answer.status_code} and ended in {last[:300]}")
    talk.first_token_s.append(first_s)
    talk.answered_s.append(time.perf_counter() - began)
    return "".join(pieces) or "..."


async def figures(client: httpx2.AsyncClient, engines: Sequence[str]) -> dict[str, float]:
    """The engines' own counters, added up."""
    pages = [(await client.get(f"{engine}/metrics")).text for engine in engines]
    return {name: sum(counted(page, name) for page in pages) for name in (HITS, QUERIES, FIRST_S, FIRST_COUNT)}


def counted(page: str, name: str) -> float:
    """All samples of one metric in Prometheus' text format, added up, whatever their labels."""
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE))


def report(runs: Mapping[str, Sequence[Run]]) -> str:
    heads = {"prefix": "prefix affinity", "off": "off"}
    rows = []
    for title, field_name, factor, digits in (
        ("prefix cache hits, % of the prompt tokens", "hit_share", 100, 1),
        ("time to the first token, mean, ms (the engines')", "first_token_s", 1000, 1),
        ("time to the first token, p50, ms (the client's)", "seen_first_token_s", 1000, 1),
        ("the slowest answer, s", "slowest_s", 1, 2),
        ("the whole run, s", "wall_s", 1, 1),
    ):
        values = {way: [factor * getattr(run, field_name) for run in runs[way]] for way in WAYS}
        row = [title, *(spread(values[way], digits) for way in WAYS)]
        rows.append([*row, ratio(median(values["prefix"]), median(values["off"]))])
    return markdown(["", *(heads[way] for way in WAYS), "ratio"], rows)


if __name__ == "__main__":
    typer.run(main)
