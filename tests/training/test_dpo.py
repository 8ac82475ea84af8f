"""Direct preference optimization: its loss by hand, log-probabilities beside transformers', runs."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from penstock.errors import PenstockError
from tests.training.tuning import DEMO, dpo_recipe, killed, metrics
from training.dpo import dpo_loss, log_probabilities, train


def test_the_loss_is_the_papers() -> None:
    """Two pairs, beta 0.5. The policy's answers less the reference's:

    chosen -1.0 - -2.0 = 1.0, rejected -3.0 - -2.5 = -0.5, margin 0.5 * 1.5 = 0.75, -log sigmoid(0.75) = 0.38687
    chosen -4.0 - -3.0 = -1.0, rejected -2.0 - -2.0 = 0.0, margin 0.5 * -1.0 = -0.5, -log sigmoid(-0.5) = 0.97408
    """
    said = dpo_loss(
        torch.tensor([-1.0, -4.0]),
        torch.tensor([-3.0, -2.0]),
        torch.tensor([-2.0, -3.0]),
        torch.tensor([-2.5, -2.0]),
        beta=0.5,
        smoothing=0.0,
    )

    assert said.chosen_rewards.tolist() == [0.5, -0.5]
    assert said.rejected_rewards.tolist() == [-0.25, 0.0]
    assert said.margins.tolist() == [0.75, -0.5]
    assert said.losses.tolist() == pytest.approx([0.38687, 0.97408], abs=1e-5)


def test_doubtful_labels_pull_both_ways() -> None:
    """Margin 0.75, a tenth of the labels wrong: 0.9 * 0.38687 + 0.1 * 1.13687 = 0.46187."""
    policy = torch.tensor([-1.0]), torch.tensor([-3.0])
    reference = torch.tensor([-2.0]), torch.tensor([-2.5])
    assert dpo_loss(*policy, *reference, 0.5, 0.1).losses.item() == pytest.approx(0.46187, abs=1e-5)


def test_the_gradient_is_the_papers() -> None:
    """`-beta * sigmoid(-margin)` for the chosen answer and its opposite for the other: 0.5 * 0.320821 = 0.160411."""
    chosen, rejected = (torch.tensor([value], requires_grad=True) for value in (-1.0, -3.0))
    said = dpo_loss(chosen, rejected, torch.tensor([-2.0]), torch.tensor([-2.5]), beta=0.5, smoothing=0.0)
    said.losses.sum().backward()  # type: ignore[no-untyped-call]

    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == pytest.approx((-0.160411, 0.160411), abs=1e-6)


def test_log_probabilities_are_transformers_own() -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).train(False)
    tokens = torch.randint(3, 600, (3, 20), generator=torch.Generator().manual_seed(0))
    learned = torch.zeros(3, 20, dtype=torch.bool)
    learned[0, 5:12] = learned[1, 1:] = learned[2, 3:5] = learned[2, 9:11] = True
    with torch.no_grad():
        logits = model(input_ids=tokens).logits
        means = [
            -model(input_ids=tokens[i : i + 1], labels=tokens[i : i + 1].masked_fill(~learned[i : i + 1], -100)).loss
            for i in range(3)
        ]
    counts = [7, 19, 4]

    summed = [mean.item() * count for mean, count in zip(means, counts, strict=True)]
    assert log_probabilities(logits, tokens, learned).tolist() == pytest.approx(summed, rel=1e-5)
    mean = log_probabilities(logits, tokens, learned, normalized=True)
    assert mean.tolist() == pytest.approx([one.item() for one in means], rel=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(dpo_recipe(folder, "lora"), folder / "run", resume=False)
    return folder / "run"


def test_a_run_begins_at_the_reference_and_learns_the_preference(whole: Path) -> None:
    lines = metrics(whole)

    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.1)
    assert lines[-1]["loss"] < 0.3
    assert lines[-1]["accuracy"] == 1
    assert lines[-1]["margin"] == pytest.approx(lines[-1]["chosen_reward"] - lines[-1]["rejected_reward"], abs=1e-4)


def test_a_killed_run_ends_as_if_it_had_not_been(whole: Path, tmp_path: Path) -> None:
    recipe = whole.parent / "recipe.yaml"
    killed("dpo", recipe, tmp_path / "run", after_lines=6)
    assert len(metrics(tmp_path / "run")) < 12
    train(recipe, tmp_path / "run", resume=True)

    assert metrics(tmp_path / "run") == metrics(whole)
    adapter = "model/adapter_model.safetensors"
    assert (tmp_path / "run" / adapter).read_bytes() == (whole / adapter).read_bytes()


def test_an_adapter_is_gone_on_with_and_is_its_own_reference(whole: Path, tmp_path: Path) -> None:
    """Without dropout the first loss is log 2, though the adapter prefers already what is to be preferred."""
    change = {"adapter": {"start": str(whole / "model")}, "steps": 6, "optimizer": {"lr": 1e-3}}
    recipe = dpo_recipe(tmp_path, "lora", **change)
    killed("dpo", recipe, tmp_path / "run", after_lines=5)
    train(recipe, tmp_path / "run", resume=True)
    lines = metrics(tmp_path / "run")

    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.1)
    assert lines[-1]["margin"] > 0
    before, after = (load_file(run / "model/adapter_model.safetensors") for run in (whole, tmp_path / "run"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "run/model/adapter_config.json").read_text())["base_model_name_or_path"] == str(DEMO)


def test_an_adapter_that_has_changed_is_not_gone_on_with(whole: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(whole / "model", start)
    recipe = dpo_recipe(tmp_path, "lora", adapter={"start": str(start)}, steps=1)
    train(recipe, tmp_path / "run", resume=False)
    train(recipe, tmp_path / "run", resume=True)
    weights = load_file(start / "adapter_model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, start / "adapter_model.safetensors")
    with pytest.raises(PenstockError, match=rf"{start} has changed since"):
        train(recipe, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        ({"start": str(DEMO)}, "is no adapter"),
        ({"start": "absent"}, "is no adapter"),
        ({"start": "somewhere", "rank": 4}, "leave them out"),
    ],
)
def test_what_cannot_be_gone_on_with_is_told(adapter: dict[str, object], why: str, tmp_path: Path) -> None:
    with pytest.raises(PenstockError, match=why):
        train(dpo_recipe(tmp_path, "lora", adapter=adapter), tmp_path / "run", resume=False)


def test_an_adapter_of_another_base_is_told(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(whole / "model", other)
    said = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(said | {"base_model_name_or_path": "another/model"}))
    with pytest.raises(PenstockError, match="is an adapter of another/model"):
        train(dpo_recipe(tmp_path, "lora", adapter={"start": str(other)}), tmp_path / "run", resume=False)


def test_the_whole_model_is_held_to_what_it_was(tmp_path: Path) -> None:
    """Its reference is the base, not what it has become: without dropout the first loss is log 2 to the last digits."""
    change = {"steps": 4, "rows_at_once": 2, "optimizer": {"lr": 2e-4}, "length_normalized": True, "beta": 2.0}
    train(dpo_recipe(tmp_path, "full", **change), tmp_path / "run", resume=False)
    lines = metrics(tmp_path / "run")

    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert lines[-1]["margin"] > lines[0]["margin"]
    assert (tmp_path / "run/model/model.safetensors").is_file()
