"""Small tuning runs on the bundled demo model, and what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from training.data import conversation

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "recipes/demo/model"
COMMON: dict[str, Any] = {
    "base": str(DEMO),
    "seed": 3,
    "precision": "float32",
    "adapter": {"rank": 8, "alpha": 16, "dropout": 0.1},
    "length": 256,
    "rows": 4,
    "steps": 12,
    "optimizer": {"lr": 1e-2, "warmup_steps": 2},
    "checkpoint_every": 4,
}


def sft_recipe(folder: Path, method: str, **change: Any) -> Path:
    """Greetings and labels, answered in capitals: what the demo does not do by itself."""
    data = folder / "conversations.jsonl"
    items = [conversation(family, "tuning", i) for i in range(20) for family in ("greeting", "label")]
    for item in items:
        item["messages"][-1]["content"] = item["messages"][-1]["content"].upper()
    data.write_text("\n".join(map(json.dumps, items)))
    recipe = {"script": "sft", "method": method, "data": [{"path": str(data)}], "held_out": 0.2, **COMMON, **change}
    return written(folder, recipe)


def dpo_recipe(folder: Path, method: str, **change: Any) -> Path:
    """Capitals are preferred to what the demo says by itself."""
    data = folder / "pairs.jsonl"
    rows = []
    for i in range(24):
        *prompt, answer = conversation("label", "tuning", i)["messages"]
        rows.append({"prompt": prompt, "chosen": answer["content"].upper(), "rejected": answer["content"]})
    data.write_text("\n".join(map(json.dumps, rows)))
    return written(folder, {"script": "dpo", "method": method, "data": [{"path": str(data)}], **COMMON, **change})


def written(folder: Path, recipe: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def killed(script: str, recipe: Path, run: Path, *, after_lines: int) -> None:
    """The script as a process, ended by SIGKILL once it has written so many lines."""
    command = [sys.executable, "-m", f"training.{script}", str(recipe), "--out", str(run)]
    running = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    lines = run / "metrics.jsonl"
    while not (lines.exists() and lines.read_bytes().count(b"\n") >= after_lines):
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
