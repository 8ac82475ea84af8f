"""Runs logged to MLflow: to one in memory, and to the real one where PENSTOCK_TEST_MLFLOW names its `mlflow`."""

import json
import os
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.registry.conftest import safetensors
from tests.training.mlflow_server import mlflow_server
from training import tracking
from training.run import Run
from training.tracking import flat, points

RECIPE = {
    "script": "sft",
    "base": "registry:demo@production",
    "optimizer": {"lr": 0.1, "stages": [{"rows": 2}]},
    "odd name, §": "x" * 900,
    "many": {str(number): number for number in range(150)},
    "resolved": {"base": "demo@3", "digests": {"data/train.jsonl": "f" * 64}},
}


@dataclass
class Server:
    """What it has, asked over its own API."""

    uri: str

    def run(self, run: str) -> dict[str, Any]:
        asked = {"run_id": run}
        found: dict[str, Any] = httpx2.get(f"{self.uri}/api/2.0/mlflow/runs/get", params=asked).json()["run"]
        return found | {name: {one["key"]: one["value"] for one in found["data"][name]} for name in ("params", "tags")}

    def history(self, run: str, metric: str) -> list[tuple[int, float]]:
        asked = {"run_id": run, "metric_key": metric, "max_results": "10000"}
        found = httpx2.get(f"{self.uri}/api/2.0/mlflow/metrics/get-history", params=asked).json()
        return sorted((int(one["step"]), float(one["value"])) for one in found["metrics"])


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = os.environ.get("PENSTOCK_TEST_MLFLOW")
    if not command:
        pytest.skip("PENSTOCK_TEST_MLFLOW names no `mlflow` of an environment that has it: it brings 80 packages")
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    words = ["server", "--backend-store-uri", f"sqlite:///{folder / 'db'}", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen([command, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx2.HTTPError:
                assert process.poll() is None
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(params=["in memory", "real"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(tracking, "PERIOD_S", 0.05)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "penstock's")
    if request.param == "real":
        uri = request.getfixturevalue("real")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield Server(uri)
        return
    with mlflow_server() as (uri, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield Server(uri)


def trained(folder: Path, steps: int, *, until: int | None = None, resume: bool = False) -> Run:
    run = Run(folder, RECIPE, steps=steps, resume=resume)
    for step in range(run.first_step, until or steps):
        run.log(step, tokens=8, loss=1 / (step + 1), accuracy=step / steps)
        if (step + 1) % 10 == 0:
            run.checkpoint(step + 1, {})
    if until is None:
        with run.writing_model() as model:
            (model / "model.safetensors").write_bytes(safetensors())
            (model / "config.json").write_text("{}")
    return run


def noted(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "mlflow.json").read_text())
    return found


def test_a_run_has_its_recipe_its_curves_and_its_result(server: Server, tmp_path: Path) -> None:
    trained(tmp_path / "r", 1500)
    state = noted(tmp_path / "r")
    assert state["offset"] == (tmp_path / "r/metrics.jsonl").stat().st_size
    found = server.run(state["run"])
    assert found["info"]["status"] == "FINISHED"
    assert found["info"]["run_name"] == "r"
    assert found["params"]["optimizer.lr"] == "0.1"
    assert found["params"]["optimizer.stages.0.rows"] == "2"
    assert found["params"]["many.149"] == "149"
    assert len(found["params"]["odd name_ _"]) == 500
    assert found["tags"]["penstock.data.train.jsonl"] == "f" * 64
    assert found["tags"]["penstock.model"] == str(tmp_path / "r/model")
    assert found["tags"]["penstock.digest"] == tracking.digest_of(tmp_path / "r/model")
    assert server.history(state["run"], "loss") == [(step, 1 / (step + 1)) for step in range(1500)]


def test_a_killed_run_goes_on_in_the_same_run_with_no_step_twice(server: Server, tmp_path: Path) -> None:
    cut = trained(tmp_path / "r", 40, until=25)
    assert cut._tracking
    cut._tracking.close()
    first = noted(tmp_path / "r")
    assert server.run(first["run"])["info"]["status"] == "FAILED"
    os.close(cut._lock)
    trained(tmp_path / "r", 40, resume=True)
    assert noted(tmp_path / "r")["run"] == first["run"]
    assert server.run(first["run"])["info"]["status"] == "FINISHED"
    assert server.history(first["run"], "accuracy") == [(step, step / 40) for step in range(40)]


def test_a_server_that_is_away_costs_the_run_nothing_and_gets_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    monkeypatch.setattr(tracking, "PERIOD_S", 0.02)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    trained(tmp_path / "r", 20)
    said = capfd.readouterr().err
    assert said.count("not logged to MLflow") == 1
    assert f"python -m training.tracking {tmp_path / 'r'}" in said
    with mlflow_server(port) as (uri, runs):
        done = subprocess.run(
            [sys.executable, "-m", "training.tracking", str(tmp_path / "r")], capture_output=True, text=True
        )
        assert done.stdout == f"{uri} has the run run0\n", done.stderr
    assert runs.runs["run0"]["status"] == "FINISHED"
    assert [one["step"] for one in runs.runs["run0"]["metrics"] if one["key"] == "loss"] == list(range(20))


def test_a_server_that_goes_in_the_midst_gets_what_it_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(tracking, "PERIOD_S", 0.02)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with mlflow_server(port) as (_, runs):
        run = trained(tmp_path / "r", 30, until=10)
        while not any(one["step"] == 9 for each in runs.runs.values() for one in each["metrics"]):
            time.sleep(0.01)
    for step in range(10, 20):
        run.log(step, loss=0.5)
    with mlflow_server(port) as (_, again):
        again.runs = runs.runs
        assert run._tracking
        run._tracking.close()
    assert [one["step"] for one in runs.runs["run0"]["metrics"] if one["key"] == "loss"] == list(range(20))


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "sqlite:///mlflow.db", "databricks"])
def test_what_is_no_server_is_told_and_nothing_else_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    trained(tmp_path / "r", 2)
    assert "start one with `mlflow server`" in capfd.readouterr().err
    assert not (tmp_path / "r" / "mlflow.json").exists()


def test_a_password_in_the_uri_is_told_to_the_server_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "PERIOD_S", 0.02)
    with mlflow_server() as (uri, runs):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace("//", "//me:s%40cret@"))
        trained(tmp_path / "r", 2)
    trained(tmp_path / "away", 2)
    assert runs.seen == {"Basic " + b64encode(b"me:s@cret").decode()}
    assert "cret" not in (tmp_path / "r/mlflow.json").read_text() + capfd.readouterr().err


def test_without_a_server_nothing_is_imported(tmp_path: Path) -> None:
    code = "import sys, training.run, training.tracking; training.tracking.begin(None); print('httpx2' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "False\n", done.stderr


def test_lines_and_recipes_by_hand() -> None:
    assert dict(flat({"a": {"b": [1, {"c": None}]}})) == {"a.b.0": "1", "a.b.1.c": "None"}
    lines = b'{"step": 1, "loss": 2.5, "ok": true, "name": "x"}\n{"step": 2, "loss": NaN}\n{"st\n[1]\n'
    assert list(points(lines)) == [("loss", 2.5, 1)]
