"""The pre-training script: its recipe, its loss, runs that learn, runs that are killed."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml

from penstock.errors import ConfigError, Conflict
from training.card import checksums
from training.model import build
from training.packing import Batch, apart
from training.pretrain import Optimizers, learn, learning_rate_share, token_losses, train, weighted_loss
from training.pretrain_recipe import OptimizerPart, Recipe, load_recipe

SMOKE = Path(__file__).with_name("smoke.yaml")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Muon, two parts a step, generated families."""
    out = tmp_path_factory.mktemp("smoke")
    train(SMOKE, out, resume=False)
    return out


@pytest.fixture(scope="module")
def text_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AdamW alone, two parts a step, layers computed twice, files whose documents do not see each other."""
    folder = tmp_path_factory.mktemp("texts")
    for name, seed in (("trained", 1), ("held out", 2)):
        (folder / f"{name}.txt").write_text(counted(Random(seed), 400))
    rows = [{"text": counted(Random(seed), 3)} for seed in range(3, 40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = yaml.safe_load(SMOKE.read_text()) | {
        "model": {**TINY, "style": "gpt2"},
        "optimizer": {
            "adamw_lr": 0.01, "weight_decay": 0.1, "warmup_steps": 5, "decay_share": 0.5, "final_share": 0, "clip": 1
        },
        "stages": [{"steps": 60, "rows": 4, "length": 64,
            "files": {str(folder / "trained.txt"): 2, str(folder / "rows.jsonl"): 1}}],
        "validation": {"every": 20, "files": [str(folder / "held out.txt")]},
        "gradient_checkpointing": True,
        "separate_documents": True,
    }  # fmt: skip
    del recipe["evaluation_items"]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


TINY = {"hidden_size": 64, "layers": 2, "heads": 2, "ffn_size": 128, "max_length": 64}


def counted(rng: Random, sentences: int) -> str:
    """A text with something to learn: each number is followed by the next."""
    starts = [rng.randint(1, 6) for _ in range(sentences)]
    return "\n".join(f"One counts {n}, then {n + 1}, then {n + 2}." for n in starts)


@pytest.fixture(scope="module")
def text_run(text_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("text-run")
    train(text_recipe, out, resume=False)
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

    losses = token_losses(logits, tokens)
    assert losses.shape == (2, 4)
    assert weighted_loss(losses, weights).item() == pytest.approx(total / share, rel=1e-5)


def _rows(lengths: int = 4) -> Batch:
    """Rows of unequal weight: half of the second half counts for nothing."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(300, (lengths, 32), generator=generator)
    weights = torch.rand(lengths, 32, generator=generator)
    weights[lengths // 2 :, 16:] = 0
    weights[0, :8] = 1.0
    return Batch(tokens, weights, torch.zeros_like(tokens))


@pytest.mark.parametrize("muon_lr", [0.02, None])
def test_a_step_in_parts_is_the_step_of_the_whole(muon_lr: float | None) -> None:
    """The mean is over all tokens of the step: not the mean of the parts' means, which weigh short rows more."""
    found = {}
    for parts in (1, 2, 4):
        recipe = _recipe({"accumulation": parts, "optimizer": _optimizer(muon_lr), "precision": "float32"})
        model = build(recipe.model, 300, seed=1)
        losses = learn(model, _rows(), recipe, Optimizers.of(model, recipe.optimizer))
        found[parts] = losses, torch.cat([weight.detach().flatten() for weight in model.parameters()])

    start = torch.cat([weight.detach().flatten() for weight in build(recipe.model, 300, seed=1).parameters()])
    for parts in (2, 4):
        assert found[parts][0] == pytest.approx(found[1][0], rel=1e-6)
        moved = (found[1][1] - start).norm()
        assert (found[parts][1] - found[1][1]).norm() < 1e-3 * moved


def test_every_weight_belongs_to_one_optimizer_and_learns() -> None:
    for style in ("qwen3", "llama", "gpt2"):
        for muon_lr in (0.02, None):
            recipe = _recipe({"model": {**TINY, "style": style, "max_length": 128}, "optimizer": _optimizer(muon_lr)})
            model = build(recipe.model, 300, seed=1)
            before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
            optimizers = Optimizers.of(model, recipe.optimizer)
            held = [weight for one, _ in optimizers.each for group in one.param_groups for weight in group["params"]]
            optimizers.at_share(1.0)
            learn(model, _rows(), recipe, optimizers)

            assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
            assert [type(one).__name__ for one, _ in optimizers.each] == (["Muon"] if muon_lr else []) + ["AdamW"]
            assert [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])] == []


def test_the_first_token_of_a_document_that_stands_alone_has_no_weight() -> None:
    rows = Batch(torch.zeros(1, 6), torch.ones(1, 6), torch.tensor([[0, 0, 0, 1, 1, 2]]))
    assert apart(rows).weights.tolist() == [[0, 1, 1, 0, 1, 0]]


def _optimizer(muon_lr: float | None) -> dict[str, Any]:
    shape = {"adamw_lr": 0.003, "warmup_steps": 1, "decay_share": 0.5, "final_share": 0.1, "clip": 1}
    return shape | ({"muon_lr": muon_lr} if muon_lr else {})


def _recipe(change: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(yaml.safe_load(SMOKE.read_text()) | {"device": "cpu"} | change)


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
        ({"sed": 4}, "recipe.yaml:44: unknown key 'sed', did you mean 'seed'?"),
        ({"script": "sft"}, "pretrain"),
        ({"stages": []}, "stages"),
        ({"model": TINY | {"heads": 5}}, "5 heads do not divide a width of 64"),
        ({"stages": [{"families": {"small_talk": 1}}]}, "unknown families ['small_talk']"),
        ({"stages": [{"families": {}}]}, "a stage needs `families` or `files`"),
        ({"stages": [{"length": 512}]}, "rows of 512 are longer than the model's max_length 256"),
        ({"stages": [{"files": {"nowhere.txt": 1}}]}, "nowhere.txt cannot be read: No such file"),
        ({"validation": {"every": 5}}, "a validation needs `families` or `files`"),
        (
            {"stages": [{"files": {"a/../b": 1}}], "validation": {"every": 5, "files": ["b"]}},
            "validation reads what is trained on",
        ),
        ({"accumulation": 3}, "an accumulation of 3 does not divide 8 rows"),
        ({"tokenizer": {"folder": "."}}, "tokenizer.json cannot be read"),
        ({"digests": {"other.txt": "00"}}, "not the data that the recipe's `digests` tell of: other.txt"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_reason(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    recipe = yaml.safe_load(SMOKE.read_text())
    for key, value in change.items():
        recipe[key] = [recipe[key][0] | value[0]] if key == "stages" and value else value
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))

    with pytest.raises(ConfigError) as refused:
        train(path, tmp_path / "out", resume=False)
    assert told in refused.value.message
    assert not (tmp_path / "out").exists()


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


def test_validation_goes_down_as_the_run_learns(smoke_run: Path, text_run: Path) -> None:
    for out, at in ((smoke_run, [49, 99, 149]), (text_run, [19, 39, 59])):
        validated = [line for line in _metrics(out) if "perplexity" in line]

        assert [line["step"] for line in validated] == at
        assert validated[-1]["perplexity"] < 0.7 * validated[0]["perplexity"]
        for line in validated:
            assert line["perplexity"] == pytest.approx(math.exp(line["validation_loss"]))
            assert 0 < line["bits_per_byte"] < 8


def test_a_run_on_texts_has_a_card_of_its_data_and_no_claims(text_run: Path) -> None:
    card = (text_run / "model/README.md").read_text()
    resolved = yaml.safe_load((text_run / "recipe.yaml").read_text())

    assert "GPT2LMHeadModel" in (text_run / "model/config.json").read_text()
    assert len(resolved["digests"]) == 3
    assert all(f"`{Path(path).name}`, SHA-256 `{digest}`" in card for path, digest in resolved["digests"].items())
    assert "exact" not in card


def test_the_resolved_recipe_of_a_run_makes_it_again(text_run: Path, tmp_path: Path) -> None:
    train(text_run / "recipe.yaml", tmp_path, resume=False)

    assert _metrics(tmp_path) == _metrics(text_run)
    assert (tmp_path / "model/model.safetensors").read_bytes() == (text_run / "model/model.safetensors").read_bytes()


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
    with pytest.raises(Conflict, match="--resume"):
        train(SMOKE, smoke_run, resume=False)


@pytest.mark.parametrize("kind", ["smoke", "text"])
def test_a_killed_run_resumes_on_the_same_loss_curve(
    kind: str, smoke_run: Path, text_run: Path, text_recipe: Path, tmp_path: Path
) -> None:
    recipe, whole, lines = (SMOKE, smoke_run, 35) if kind == "smoke" else (text_recipe, text_run, 25)
    command = [str(Path(sys.executable).parent / "penstock"), "train", str(recipe), "--out", str(tmp_path)]
    running = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    while not _reached(tmp_path / "metrics.jsonl", lines):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert len(_metrics(tmp_path)) < len(_metrics(whole))
    train(recipe, tmp_path, resume=True)

    assert _metrics(tmp_path) == _metrics(whole)
    weights = "model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (whole / weights).read_bytes()


def _reached(metrics: Path, lines: int) -> bool:
    return metrics.exists() and metrics.read_bytes().count(b"\n") >= lines


def test_a_stage_whose_documents_are_too_long_is_told(text_recipe: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load(text_recipe.read_text())
    [stage] = recipe["stages"]
    stage["files"] = {path: weight for path, weight in stage["files"].items() if path.endswith("jsonl")}
    stage["length"] = 16
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))

    with pytest.raises(ConfigError, match=r"rows.jsonl: 37 of 37 documents are longer than a row of 16 tokens"):
        train(path, tmp_path / "out", resume=False)
    path.write_text(yaml.safe_dump(recipe | {"too_long": "skip"}))
    with pytest.raises(ConfigError, match=r"none of 37 documents fits a row of 16 tokens"):
        train(path, tmp_path / "out", resume=False)
