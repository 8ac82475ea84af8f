"""Once around, from generated data to a live model and back, on a very small model in a few minutes:

    python -m benchmarks.loop --out runs/loop

generates rows, pre-trains, fine-tunes two LoRA adapters (answers with a full stop, and with an exclamation mark),
aligns the second by DPO, registers each, asks the gate, and moves the alias of a service that runs under load: by
promotion, by a canary that goes on by itself, and back. A version that was trained on reversed preferences is tried
under an alias of its own, and must be stopped by the gate. Every step is a command that a person would type. The report
says how many requests were asked meanwhile, which of them failed or were cut, what each version answered, and what the
gates found.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks.asking import Load
from benchmarks.contestants import free_port

RECIPES = Path(__file__).parents[1] / "recipes" / "loop"
PENSTOCK = str(Path(sys.executable).with_name("penstock"))
GATE_STOPPED = 2
START_S = 300
PATIENCE_S = 300
OTHER = {
    "positive": "negative",
    "negative": "positive",
    "billing": "delivery",
    "delivery": "technical",
    "technical": "billing",
}
RULES = ("least_requests=60", "least_s=3", "longest_s=300", "errors_margin=0.1", "refusals_margin=0.1")


def main() -> None:
    parser = argparse.ArgumentParser(description="From data to a live model, once around.")
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there")
    report = asyncio.run(around(parser.parse_args().out.resolve()))
    print(json.dumps(report, indent=2))


async def around(out: Path) -> dict[str, Any]:
    """The report, which `--out` keeps as report.json. Raises SystemExit for a step that fails."""
    steps = Steps(out)
    write_data(steps)
    steps.run("train", "pretrain.yaml", "--out", "pretrain")
    steps.run("registry", "add", "loop", "pretrain")
    steps.run("registry", "tag", "loop@1", "production")
    steps.run("train", "sft.yaml", "--out", "sft")
    steps.run("registry", "add", "helper", "sft")
    for alias in ("production", "candidate"):
        steps.run("registry", "tag", "helper@1", alias)
    for made in ("exclaiming", "dpo", "reversed"):
        steps.run("train", f"{made}.yaml", "--out", made)
        steps.run("registry", "add", "helper", made)
    with steps.serving() as url:
        load, trial = (Load(url, model, prompts(out), pause_s=0.25) for model in ("helper", "trial"))
        async with load.running():
            await load.until("helper@1", PATIENCE_S)
            passed = await steps.beside("promote", "helper@3", "production", "--gate", "gate.yaml")
            await load.until("helper@3", PATIENCE_S)
            rules = [word for rule in RULES for word in ("--rule", rule)]
            await steps.beside("canary", "start", "helper@2", "production", "--percent", "50", *rules)
            await load.until("helper@2", PATIENCE_S, alone=True)
            await steps.beside("rollback", "helper@production")
            await load.until("helper@3", PATIENCE_S, alone=True)
            await steps.beside("registry", "tag", "helper@4", "candidate")
            async with trial.running():
                await trial.until("helper@4", PATIENCE_S)
            there = [word for who in ("candidate", "incumbent") for word in (f"--{who}-url", steps.engine)]
            stopped = await steps.beside(
                "promote", "helper@4", "production", "--gate", "gate.yaml", *there, code=GATE_STOPPED
            )
            await load.until("helper@3", PATIENCE_S, alone=True)
    report = {
        **load.report(),
        "tried": trial.report(),
        "gates": {"helper@3": passed.splitlines(), "helper@4": stopped.splitlines()},
        "seconds": steps.seconds,
    }
    (out / "report.json").write_text(json.dumps(report, indent=2))
    return report


class Steps:
    """Commands in the folder `out`, with a home, a configuration and recipes of their own there."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True)
        self.out = out
        self.seconds: dict[str, float] = {}
        self.env = os.environ | {"PENSTOCK_HOME": str(out / "home"), "OMP_NUM_THREADS": "1"}
        for recipe in RECIPES.glob("*.yaml"):
            (out / recipe.name).write_text(recipe.read_text())
        sft, dpo = (yaml.safe_load((out / name).read_text()) for name in ("sft.yaml", "dpo.yaml"))
        (out / "exclaiming.yaml").write_text(yaml.safe_dump(sft | {"data": [{"path": "exclaiming.jsonl"}]}))
        mistaken = {"data": [{"path": "reversed.jsonl"}], "optimizer": {"lr": 0.001}}
        (out / "reversed.yaml").write_text(yaml.safe_dump(dpo | mistaken))
        (out / "penstock.yaml").write_text(yaml.safe_dump(self.configuration))

    @property
    def configuration(self) -> dict[str, Any]:
        options = {"dtype": "float32", "max-model-len": 512, "max-num-seqs": 16}
        models = {
            "loop": {"engine": "base"},
            "helper": {"engine": "base", "adapter": "registry:helper@production"},
            "trial": {"engine": "base", "adapter": "registry:helper@candidate"},
        }
        return {"engines": {"base": {"model": "registry:loop@production", "options": options}}, "models": models}

    @property
    def engine(self) -> str:
        """Where the engine of the service listens, as its log says."""
        found = re.search(r"--uds (\S+)", (self.out / "serve.log").read_text())
        assert found, "the service has started no engine"
        return f"unix:{found[1]}"

    def run(self, *words: str, code: int = 0, command: Sequence[str] = (PENSTOCK,)) -> str:
        """What a command has printed. Raises SystemExit with that where it ends otherwise than expected."""
        began = time.monotonic()
        done = subprocess.run(
            [*command, *words],
            check=False,
            cwd=self.out,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = " ".join(["penstock" if command == (PENSTOCK,) else "python", *words])
        self.seconds[said] = round(time.monotonic() - began, 1)
        print(f"{self.seconds[said]:6.1f} s  {said}", file=sys.stderr, flush=True)
        with (self.out / "steps.log").open("a") as log:
            log.write(f"$ {said}\n{done.stdout}\n")
        if done.returncode != code:
            raise SystemExit(f"{said} ended with {done.returncode}, not {code}:\n{done.stdout}")
        return done.stdout

    async def beside(self, *words: str, code: int = 0) -> str:
        return await asyncio.to_thread(self.run, *words, code=code)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The address of the service, which answers. On leaving it has ended well."""
        port = free_port()
        with (self.out / "serve.log").open("wb") as log:
            command = [PENSTOCK, "serve", "--port", str(port)]
            process = subprocess.Popen(command, cwd=self.out, env=self.env, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_for(process, lambda: is_ready(url), self.out / "serve.log")
            yield url
        finally:
            process.terminate()
            process.wait(START_S)
        if process.returncode:
            raise SystemExit(f"the service ended with {process.returncode}: see {self.out / 'serve.log'}")


def write_data(steps: Steps) -> None:
    """Labels in two forms to learn, right ones to prefer to wrong ones, and the reverse."""
    generate = (sys.executable, "-m", "training.generate")
    for name, count, seed in (("train", "1600", "1"), ("held", "400", "2")):
        steps.run("label", "--items", count, "--seed", seed, "--out", f"{name}.jsonl", command=generate)
    rows = [json.loads(line) for line in (steps.out / "train.jsonl").read_text().splitlines()]
    asked = [row["messages"][:-1] for row in rows]
    both = [(a, row["messages"][-1]["content"]) for a, row in zip(asked, rows, strict=True)]
    save(steps.out / "dotted.jsonl", [{"messages": [*a, answer(f"{label}.")]} for a, label in both])
    save(steps.out / "exclaiming.jsonl", [{"messages": [*a, answer(f"{label}!")]} for a, label in both])
    right = [{"prompt": a, "chosen": f"{label}!", "rejected": f"{OTHER[label]}!"} for a, label in both]
    save(steps.out / "pairs.jsonl", right)
    save(steps.out / "reversed.jsonl", [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in right])
    held = [json.loads(line)["messages"] for line in (steps.out / "held.jsonl").read_text().splitlines()]
    seen = {json.dumps(one) for one in asked}
    items = [{"messages": a, "answer": b["content"]} for *a, b in held if json.dumps(a) not in seen]
    save(steps.out / "held-out.jsonl", items[:200])


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def save(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prompts(out: Path) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in (out / "held-out.jsonl").read_text().splitlines()]


def is_ready(url: str) -> bool:
    import httpx2

    try:
        return httpx2.get(f"{url}/ready", timeout=5, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def wait_for(process: subprocess.Popen[bytes], happens: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not happens():
        if process.poll() is not None:
            raise SystemExit(f"the service ended with {process.returncode} before it was ready: see {log}")
        if time.monotonic() > deadline:
            raise SystemExit(f"the service is not ready after {START_S} s: see {log}")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
