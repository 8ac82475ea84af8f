"""The pre-training script: its recipe, its loss, a run that learns, a run that is killed."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from training.card import checksums
from training.pretrain import learning_rate_share, train, weighted_loss
from training.pretrain_recipe import OptimizerPart, Recipe, load_recipe

SMOKE = Path(__file__).with_name("smoke.yaml")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smoke")
    train(SMOKE, out, resume=False)
    return out


def _metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_is_the_weighted_mean_over_next_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator)
    tokens = torch.randint(7, (2, 5), generator=generator)
    weights = torch.rand(2, 5, generator=generator)

    total = share = 0.0
    for row in range(2):
        for position in range(4):
            scores = [math.exp(score) for score in logits[row, position].tolist()]
            following = tokens[row, position + 1]
            weight = weights[row, position + 1].item()
            total -= weight * math.log(scores[following] / sum(scores))
            share += weight

    assert weighted_loss(logits, tokens, weights).item() == pytest.approx(total / share, rel=1e-5)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    part = OptimizerPart(muon_lr=1, adamw_lr=1, warmup_steps=10, decay_share=0.5, final_share=0.1, clip=1)
    shares = [learning_rate_share(step, 100, part) for step in range(100)]

    assert shares[:10] == sorted(shares[:10])
    assert set(shares[9:51]) == {1.0}
    assert shares[50:] == sorted(shares[50:], reverse=True)
    assert shares[99] == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sed": 4}, "sed"),
        ({"script": "sft"}, "pretrain"),
        ({"stages": []}, "stages"),
        ({"model": {"heads": 5}}, "5 heads do not divide a width of 96"),
        ({"stages": [{"families": {"small_talk": 1}}]}, "unknown families ['small_talk']"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_reason(change: dict[str, Any], told: str) -> None:
    recipe = yaml.safe_load(SMOKE.read_text())
    for key, value in change.items():
        match value:
            case dict():
                recipe[key] |= value
            case [part]:
                recipe[key] = [recipe[key][0] | part]
            case _:
                recipe[key] = value

    with pytest.raises(ValidationError) as refused:
        Recipe.model_validate(recipe)
    assert told in str(refused.value)


def test_the_demo_recipe_is_valid_and_its_stages_add_up() -> None:
    recipe = load_recipe(REPOSITORY / "recipes/demo/pretrain.yaml")

    assert recipe.tokens == sum(s.steps * s.rows * s.length for s in recipe.stages)
    assert recipe.stage_at(0) is recipe.stages[0]
    assert recipe.stage_at(recipe.stages[0].steps) is recipe.stages[1]
    assert recipe.stage_at(recipe.steps - 1) is recipe.stages[-1]
    with pytest.raises(IndexError):
        recipe.stage_at(recipe.steps)


def test_a_small_run_learns_its_families(smoke_run: Path) -> None:
    *steps, evaluation = _metrics(smoke_run)

    assert [line["step"] for line in steps] == list(range(150))
    assert steps[0]["loss"] > 5.5
    assert sum(line["answer_loss"] for line in steps[-10:]) / 10 < 0.35
    assert evaluation["exact"]["greeting"] >= 5


def test_a_run_leaves_a_whole_model_directory(smoke_run: Path) -> None:
    folder = smoke_run / "model"
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    listed = {line.split("  ")[1]: line.split("  ")[0] for line in (folder / "SHA256SUMS").read_text().splitlines()}

    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= set(listed)
    assert listed == checksums(folder)
    assert config["dtype"] == "bfloat16"
    assert config["eos_token_id"] == generation["eos_token_id"]
    assert tokenizer["model_max_length"] == 256


def test_a_run_folder_is_not_overwritten(smoke_run: Path) -> None:
    with pytest.raises(FileExistsError, match="--resume"):
        train(SMOKE, smoke_run, resume=False)


def test_a_killed_run_resumes_on_the_same_loss_curve(smoke_run: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "penstock"), "train", str(SMOKE), "--out", str(tmp_path)]
    running = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    while not _reached(tmp_path / "metrics.jsonl", 35):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    train(SMOKE, tmp_path, resume=True)

    assert _metrics(tmp_path) == _metrics(smoke_run)
    weights = "model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (smoke_run / weights).read_bytes()


def _reached(metrics: Path, lines: int) -> bool:
    return metrics.exists() and metrics.read_bytes().count(b"\n") >= lines
