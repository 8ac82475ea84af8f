"""Quantization: what is refused before it begins, what a run leaves, GPTQModel where its environment is."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from engine.dense_twin import write_dense_twin
from engine.quantized import of_folder
from evals.local import Local
from penstock.cli import app
from penstock.errors import ConfigError, Conflict, StartError
from tests.conftest import REPOSITORY
from tests.tiny import recipe, write_tiny
from training import quantize as script
from training.data import conversation
from training.quantize import losses_by_layer, quantize
from training.quantize_recipe import QuantizeRecipe, linear_weights, refuse_widths
from training.recipe import load


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "dense")


def test_the_recipes_of_the_demo_are_valid() -> None:
    for method in ("gptq", "awq", "int8"):
        assert load(REPOSITORY / f"recipes/demo/{method}.yaml", QuantizeRecipe).method == method


def test_the_matrices_of_the_layers_are_found_without_loading_them(dense: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(dense)
    linear = {name: tuple(one.weight.shape) for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    del linear["lm_head"]
    assert linear_weights(dense) == {f"{name}.weight": shape for name, shape in linear.items()}


@pytest.mark.parametrize(
    ("widths", "group_size", "says"),
    [
        ([(512, 192), (192, 512)], 128, "128 does not divide 192.*choose 64 or 32"),
        ([(96, 96)], 64, "choose 32$"),
        ([(100, 128)], 32, "multiples of 32.*int8"),
        ([], 32, "Llama"),
    ],
)
def test_widths_that_cannot_be_are_refused_with_what_can(
    widths: list[tuple[int, int]], group_size: int, says: str
) -> None:
    with pytest.raises(StartError, match=says):
        refuse_widths({f"model.layers.{i}.x.weight": width for i, width in enumerate(widths)}, group_size)


def test_widths_that_fit_pass() -> None:
    refuse_widths({"model.layers.0.x.weight": (512, 192), "model.layers.0.y.weight": (192, 512)}, 64)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_without_the_quantizers_environment_it_is_said_how_to_make_it(
    dense: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "QUANTIZER", tmp_path / "nowhere/bin/python")
    with pytest.raises(StartError, match="make quantizer"):
        quantize(recipe(tmp_path, dense, method, "group_size: 32\n"), tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_what_is_quantized_already_is_refused(tmp_path: Path) -> None:
    quantized = REPOSITORY / "tests/data/quantized/gptq"
    with pytest.raises(StartError, match="quantized already"):
        quantize(recipe(tmp_path, quantized, "int8"), tmp_path / "run", resume=False)


def test_a_model_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="download it first"):
        quantize(recipe(tmp_path, Path("nobody/nothing"), "int8"), tmp_path / "run", resume=False)


def test_an_unknown_group_size_is_an_error_of_the_recipe(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="group_size"):
        quantize(recipe(tmp_path, dense, "gptq", "group_size: 48\n"), tmp_path / "run", resume=False)


def with_file(folder: Path, dense: Path, write: Callable[[Path], object]) -> Path:
    """An int8 recipe whose evaluation is a file."""
    file = folder / "texts.jsonl"
    write(file)
    path = recipe(folder, dense, "int8")
    lines = [line for line in path.read_text().splitlines() if not line.startswith("evaluation")]
    path.write_text("\n".join([*lines, f"evaluation: {{file: {file}, texts: 5, length: 128}}", ""]))
    return path


def test_int8_from_recipe_to_report(dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = [conversation("handbook", "file", index) for index in range(8)]
    path = with_file(tmp_path, dense, lambda file: file.write_text("".join(json.dumps(one) + "\n" for one in items)))
    run = tmp_path / "run"
    quantize(path, run, resume=False)
    report = json.loads((run / "report.json").read_text())
    assert report["bytes"]["before"] == (dense / "model.safetensors").stat().st_size
    assert report["bytes"]["after"] == (run / "model/model.safetensors").stat().st_size < report["bytes"]["before"]
    assert report["perplexity"]["after"] == pytest.approx(report["perplexity"]["before"], rel=0.1)
    assert report["perplexity"]["after"] != report["perplexity"]["before"]
    *layers, last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["layer_loss"] for line in layers] == list(report["loss"].values())
    assert {f"perplexity_{when}": value for when, value in report["perplexity"].items()}.items() <= last.items()
    assert list(report["loss"]) == ["model.layers.0", "model.layers.1"]
    assert all(0 < loss < 0.01 for loss in report["loss"].values())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (run / "model" / name).read_bytes() == (dense / name).read_bytes()
    assert "perplexity" in capsys.readouterr().out
    quantize(path, run, resume=True)
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(Conflict, match="--resume"):
        quantize(path, run, resume=False)


def test_a_registered_model_is_quantized_and_is_the_parent_of_what_becomes_of_it(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that its alias pointed to at first; the perplexities are metrics of the new version."""
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def registry(*words: str) -> str:
        done = CliRunner().invoke(app, ["registry", *words])
        assert done.exit_code == 0, done.output
        return done.stdout

    registry("add", "tiny", str(dense))
    registry("tag", "tiny@1", "production")
    path = recipe(tmp_path, Path("registry:tiny@production"), "int8")
    quantize(path, tmp_path / "run", resume=False)
    report = json.loads((tmp_path / "run/report.json").read_text())
    said = json.loads(registry("add", "small", "run", "--json"))
    assert (said["kind"], said["parent"], said["data"]) == ("quantized", "tiny@1", {})
    assert said["metrics"] == {f"perplexity_{when}": value for when, value in report["perplexity"].items()}

    registry("add", "tiny", "run")
    registry("tag", "tiny@2", "production")
    quantize(path, tmp_path / "run", resume=True)
    with pytest.raises(StartError, match="registry:tiny@2 is quantized already"):
        quantize(path, tmp_path / "later", resume=False)


def test_a_model_that_has_changed_is_not_gone_on_with(dense: Path, tmp_path: Path) -> None:
    shutil.copytree(dense, tmp_path / "dense")
    path = recipe(tmp_path, tmp_path / "dense", "int8")
    quantize(path, tmp_path / "run", resume=False)
    config = json.loads((dense / "config.json").read_text())
    (tmp_path / "dense/config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    with pytest.raises(Conflict, match="dense has changed since"):
        quantize(path, tmp_path / "run", resume=True)


def test_an_adapter_is_not_quantized(dense: Path, tmp_path: Path) -> None:
    shutil.copytree(dense, tmp_path / "adapter")
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(StartError, match="is an adapter: quantize the whole weights"):
        quantize(recipe(tmp_path, tmp_path / "adapter", "int8"), tmp_path / "run", resume=False)


@pytest.mark.parametrize("line", ["{", '{"messages": []}', '["no conversation"]', '{"text": "a"}'])
def test_a_line_that_is_no_conversation_is_named(dense: Path, tmp_path: Path, line: str) -> None:
    good = json.dumps(conversation("handbook", "file", 0))
    path = with_file(tmp_path, dense, lambda file: file.write_text(f"{good}\n\n{line}\n"))
    with pytest.raises(StartError, match=r"texts.jsonl:3: expected"):
        quantize(path, tmp_path / "run", resume=False)


def test_the_loss_of_a_layer_by_hand(dense: Path, tmp_path: Path) -> None:
    """Of one token, layer by layer, each given what the dense model's is given."""
    write_dense_twin(REPOSITORY / "tests/data/quantized/awq", tmp_path / "twin")
    ids = torch.tensor([[7]])
    before, after = (
        AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32) for one in (dense, tmp_path / "twin")
    )
    with torch.inference_mode():
        states = before(input_ids=ids, output_hidden_states=True).hidden_states
        position = before.model.rotary_emb(states[0], torch.tensor([[0]]))
        wrong = after.model.layers[0](states[0], position_embeddings=position) - states[1]
        expected = float(wrong.square().sum() / (states[1] - states[0]).square().sum())
    assert losses_by_layer(dense, tmp_path / "twin", [[7]])["model.layers.0"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.skipif(not script.QUANTIZER.is_file(), reason="`make quantizer` has not been run: GPTQModel is not here")
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_gptqmodel_from_recipe_to_report(dense: Path, tmp_path: Path, method: str) -> None:
    run = tmp_path / "run"
    quantize(recipe(tmp_path, dense, method, "group_size: 64\n"), run, resume=False)
    report = json.loads((run / "report.json").read_text())
    found = of_folder(run / "model")
    assert found
    assert (found.method, found.bits, found.group_size) == (method, 4, 64)
    assert report["bytes"]["after"] < 0.7 * report["bytes"]["before"]
    assert all(0 < loss < 0.3 for loss in report["loss"].values())
    assert len(report["loss_by_gptqmodel"]) == len(linear_weights(dense))
    assert sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) == [
        "evaluation.txt", "metrics.jsonl", "model", "quantizer.log", "recipe.yaml", "report.json",
    ]  # fmt: skip
    assert str(tmp_path) not in (run / "model/config.json").read_text()
    write_dense_twin(run / "model", tmp_path / "twin")
    assert asyncio.run(Local(tmp_path / "twin").logprobs([5, 6, 7]))


@pytest.mark.skipif(not script.QUANTIZER.is_file(), reason="`make quantizer` has not been run: GPTQModel is not here")
def test_a_quantizer_that_fails_is_told_by_the_end_of_its_log(dense: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in dense.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "nonsense", "architectures": ["No"]}))
    with pytest.raises(StartError, match=r"(?s)quantizer.log.*nonsense"):
        quantize(recipe(tmp_path, broken, "gptq", "group_size: 32\n"), tmp_path / "run", resume=False)
    assert not (tmp_path / "run/model").exists()
