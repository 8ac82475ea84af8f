"""Several models on one task, composed ones among them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from benchmarks.strategies import compared
from evals.beside import beside
from evals.runs import Head, Record, Run
from penstock.cli import app
from tests.conftest import Served, free_port, running

CONFIGURED = """
engines: {echo: {kind: scripted, options: {answers: ["{prompt}"]}}}
models:
  plain: {engine: echo}
  a|b: {engine: echo, steps: [{self_refine: {critique: "Wrong?", revise: "4"}}]}
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("beside")
    (folder / "penstock.yaml").write_text(CONFIGURED)
    port = free_port()
    penstock = str(Path(sys.executable).parent / "penstock")
    command = [penstock, "serve", "--config", str(folder / "penstock.yaml"), "--port", str(port)]
    with running(command, port, folder) as gateway:
        yield gateway


@pytest.fixture
def task(tmp_path: Path) -> str:
    """What an echo cannot answer, and one whose last turn is `4` can."""
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": "2 + 2?", "answer": "4"}) for _ in range(6)))
    return str(file)


def evaluated(*words: str) -> Result:
    return CliRunner().invoke(app, ["eval", *words])


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_a_strategy_is_put_beside_the_plain_model(served: Served, task: str, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    models = ["--model", "plain", "--model", "a|b", "--base-url", served.url, "--out", str(out)]
    shown = evaluated(task, *models, "--markdown")
    assert shown.exit_code == 0, shown.output
    plain, refined = map(cells, shown.output.splitlines()[2:4])
    assert plain[:5] == ["plain", "0.000 of 6", "0.000 to 0.390", "", "none is right"]
    assert refined[:4] == ["a\\|b", "1.000 of 6", "0.610 to 1.000", "+1.000 (+1.000 to +1.000)"]
    # `2 + 2?` answered, criticized and revised: (3 + 3) + (7 + 1) + (9 + 1) tokens
    assert refined[4:7] == ["24", "19", "5"]
    assert {file.name for file in out.iterdir()} == {"plain.jsonl", "a%7Cb.jsonl"}
    again = json.loads(evaluated(task, *models, "--json").output)
    assert [(one["model"], one["score"], one["tokens_per_correct"]) for one in again] == [
        ("plain", 0, None),
        ("a|b", 1, 24),
    ]


def test_the_benchmark_prints_the_command_and_its_table(served: Served, task: str, tmp_path: Path) -> None:
    shown = compared(task, ["plain", "a|b"], served.url, ["--limit", "6"], tmp_path / "kept")
    command, _, head, _, _, refined = shown.splitlines()
    assert command == f"$ penstock eval {task} --model plain --model 'a|b' --limit 6 --markdown"
    assert head.startswith("| model | right |")
    assert cells(refined)[1] == "1.000 of 6"
    assert (tmp_path / "kept" / "sums" / "plain.jsonl").is_file()


def test_the_temperature_is_another_sampling(served: Served, task: str, tmp_path: Path) -> None:
    words = [task, "--model", "plain", "--base-url", served.url, "--out", str(tmp_path / "run.jsonl")]
    assert evaluated(*words).exit_code == 0
    warmer = evaluated(*words, "--temperature", "1")
    assert warmer.exit_code == 1
    assert "is another run: its digest" in warmer.output


def test_a_model_is_named_once(task: str) -> None:
    twice = evaluated(task, "--model", "a", "--model", "a")
    assert (twice.exit_code, twice.output) == (1, "penstock: --model: each name once\n")


def test_what_cannot_be_compared_is_left_out() -> None:
    first, second = (Run(Head("t", "exact", name, "d", 2), {}) for name in ("a", "b"))
    for run in (first, second):
        run.add(Record("1", 1.0, "x", "stop", 1500, 5, 0.25))
    second.add(Record("2", error="EngineError: no"))
    a, b = map(cells, beside([first, second]).splitlines()[2:])
    assert a == ["a", "1.000 of 1", "0.207 to 1.000", "", "1,505", "1,500", "5", "0.25 s"]
    assert b[:4] == ["b", "0.500 of 2 (1 without an answer)", "0.095 to 0.905", ""]
