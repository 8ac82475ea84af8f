"""A training run's folder becomes a version in one command."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import BadRequest
from registry.adding import About
from registry.run_folder import is_run, of_run
from tests.penstock.test_cli import penstock
from tests.registry.conftest import MakeModel
from tests.training.mlflow_server import mlflow_server

RECIPE = {
    "script": "sft",
    "base": "registry:demo@production",
    "resolved": {"base": "demo@1", "digests": {"data/train.jsonl": "f" * 64, "odd": "short"}},
}
LINES = [
    {"step": 0, "loss": 3.0, "lr": 0.1},
    {"step": 1, "loss": 2.0, "accuracy": 0.5, "on": True},
    {"step": 2, "loss": 1},
]


@pytest.fixture
def run(tmp_path: Path, make_model: MakeModel) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    make_model().rename(folder / "model")
    return folder


def test_what_a_run_says_is_said_of_the_version_but_for_what_is_said_here(run: Path) -> None:
    model, about = of_run(run, About("terse"))
    assert model == run / "model"
    assert (about.parent, about.data, about.metrics) == (
        "demo@1",
        {"train.jsonl": "f" * 64},
        {"loss": 1, "accuracy": 0.5},
    )
    assert about.recipe == (run / "recipe.yaml").read_text()
    _, about = of_run(run, About("terse", parent="other@2", metrics={"loss": 7}, recipe="mine"))
    assert (about.parent, about.metrics["loss"], about.recipe) == ("other@2", 7, "mine")


def test_a_run_that_went_on_with_an_adapter_has_it_as_its_parent(
    run: Path, tmp_path: Path, make_model: MakeModel
) -> None:
    """If the base of the run is beneath it in the registry; else the base, so that it is not lost."""

    def added(name: str, folder: Path, *words: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["registry", "add", name, str(folder), "--json", *words])
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))

    def begun_from(start: str, resolved: str) -> None:
        facts = {"base": "registry:demo@1", "start": resolved}
        recipe = RECIPE | {"adapter": {"start": start}, "resolved": facts}
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    adapter = make_model(2, files={"config.json": None, "adapter_config.json": {"peft_type": "LORA", "r": 1}})
    added("demo", make_model(1))
    added("terse", adapter, "--parent", "demo@1")
    added("terse", adapter)
    begun_from("registry:terse@production", "registry:terse@1")
    assert added("better", run)["parent"] == "terse@1"
    begun_from("registry:terse@2", "registry:terse@2")
    assert added("better", run)["parent"] == "demo@1"
    assert added("better", run, "--parent", "terse@2")["parent"] == "terse@2"
    begun_from("runs/a/model", "runs/a/model")
    assert added("better", run)["parent"] == "demo@1"


def test_a_model_with_a_recipe_beside_it_is_a_model(run: Path) -> None:
    assert is_run(run)
    (run / "config.json").write_text("{}")
    assert not is_run(run)
    assert not is_run(run / "model")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("recipe.yaml", "[a", "recipe.yaml is no YAML"),
        ("recipe.yaml", "- a", "is no recipe"),
        ("metrics.jsonl", '{"step": 1}\n{"st', "metrics.jsonl, line 2 is no JSON"),
    ],
)
def test_a_run_that_is_odd_is_told(run: Path, name: str, text: str, message: str) -> None:
    (run / name).write_text(text)
    with pytest.raises(BadRequest, match=message):
        of_run(run, About("a"))


def test_a_run_that_has_not_ended_is_told(run: Path) -> None:
    (run / "model").rename(run / "model.new")
    with pytest.raises(BadRequest, match="has not ended: go on with it by --resume"):
        of_run(run, About("a"))


def test_one_command_adds_a_run_and_tells_mlflow_of_the_version(run: Path, make_model: MakeModel) -> None:
    assert penstock("registry", "add", "demo", str(make_model(1))).stdout == "demo@1\n"
    with mlflow_server() as (uri, runs):
        runs.answer("runs/create", {"run_name": "r", "tags": []})
        (run / "mlflow.json").write_text(json.dumps({"uri": uri, "run": "run0", "offset": 0}))
        done = penstock("registry", "add", "terse", str(run), "--json", MLFLOW_TRACKING_URI=uri)
        said = json.loads(done.stdout)
        assert (said["name"], said["parent"], said["data"]) == ("terse", "demo@1", {"train.jsonl": "f" * 64})
        assert (said["metrics"], done.stderr) == ({"loss": 1.0, "accuracy": 0.5}, "")
        assert runs.runs["run0"]["tags"] == {"penstock.version": "terse@1"}
    away = penstock("registry", "add", "terse", str(run), MLFLOW_TRACKING_URI=uri)
    assert (away.returncode, away.stdout) == (0, "terse@2\n")
    assert "MLflow is not told of terse@2: it does not answer" in away.stderr
