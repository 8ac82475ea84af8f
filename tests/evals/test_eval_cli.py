"""`penstock eval` as a person types it, before the real engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evals.runs import Head, Record, Run
from tests.conftest import REPOSITORY, Served

PENSTOCK = str(Path(sys.executable).parent / "penstock")
FOLDER = str(REPOSITORY / "recipes/demo/model")
TEXT = str(REPOSITORY / "README.md")


def evaluated(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [PENSTOCK, "eval", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == status, done.stdout + done.stderr
    return done


def run_of(path: Path, right: int, of: int) -> str:
    run = Run.begin(Head("made", "exact", path.stem, "d", of), path)
    for index in range(of):
        run.add(Record(str(index), float(index < right), "x", "stop", 5, 5, 0.1))
    run.close()
    return str(path)


def test_a_task_a_second_time_asks_nothing(exact: Served, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    words = ["tool_report", "--model", "demo", "--base-url", f"{exact.url}/v1", "--limit", "10", "--out", str(out)]
    shown = evaluated(*words).stdout
    for head in ("tokens per correct", "95 % interval", "tool_report", "verbatim"):
        assert head in shown
    written = out.read_bytes()
    counted = 'penstock_requests_total{model="demo",route="/v1/chat/completions",status="200"}'
    asked = exact.figure(counted)
    assert asked >= 10
    found = json.loads(evaluated(*words, "--json").stdout)
    assert (found["n"], found["errors"], found["model"]) == (10, 0, "demo")
    assert found["interval"][0] <= found["score"] <= found["interval"][1]
    assert out.read_bytes() == written
    assert exact.figure(counted) == asked


def test_a_file_of_ones_own(exact: Served, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    rows = [
        {"prompt": "What is a penstock?", "answer": "a penstock is the gated pipe that brings water to a turbine"},
        {"prompt": "What is a penstock?", "answers": ["no", "a gated pipe"]},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    words = [str(file), "--model", "demo", "--base-url", exact.url, "--json"]
    assert json.loads(evaluated(*words).stdout)["score"] == 0.5
    # `gated pipe` of `penstock is gated pipe that brings water to turbine`: 2 * 2 / (9 + 2)
    assert json.loads(evaluated(*words, "--metric", "f1").stdout)["score"] == pytest.approx((1 + 4 / 11) / 2)
    cut = json.loads(evaluated(*words, "--max-tokens", "2").stdout)
    assert (cut["cut"], cut["score"]) == (2, 0)


def test_the_perplexity_of_a_name_and_of_its_folder_agree(exact: Served) -> None:
    shown = [
        json.loads(evaluated("perplexity", TEXT, "--model", model, "--base-url", exact.url, "--json").stdout)
        for model in ("demo", FOLDER)
    ]
    assert shown[0]["tokens"] == shown[1]["tokens"] > 4096
    assert shown[0]["bits_per_byte"] == pytest.approx(shown[1]["bits_per_byte"], rel=1e-5)
    assert "bits per byte" in evaluated("perplexity", TEXT, "--model", "demo", "--base-url", exact.url).stdout


@pytest.mark.parametrize(
    ("right", "verdict", "status"), [(30, "regression", 2), (46, "no difference shown", 0), (60, "improvement", 0)]
)
def test_two_runs_are_compared(tmp_path: Path, right: int, verdict: str, status: int) -> None:
    files = [run_of(tmp_path / "a.jsonl", 45, 60), run_of(tmp_path / "b.jsonl", right, 60)]
    shown = evaluated("compare", *files, status=status).stdout
    assert verdict in shown
    assert f"difference {(right - 45) / 60:+.4f}" in shown
    found = json.loads(evaluated("compare", *files, "--json", status=status).stdout)
    assert (found["verdict"], found["before"]["score"], found["after"]["score"]) == (verdict, 0.75, right / 60)


def test_items_without_an_answer_are_told(exact: Served, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    long = "one two three " * 2000
    file.write_text("\n".join(json.dumps({"prompt": text, "answer": "yes"}) for text in ("Hello", long)))
    done = evaluated(str(file), "--model", "demo", "--base-url", exact.url, "--json", status=1)
    assert json.loads(done.stdout)["errors"] == 1
    assert "1 of 2 items have no answer" in done.stderr
    assert "2: ContextLengthExceeded" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nonsense", "--model", "demo"], "neither a file nor one of the built-in tasks: greeting"),
        (["react", "--model", "demo", "--metric", "rouge"], "use one of verbatim, exact, f1, number"),
        (["react", "--model", "other"], "other"),
        (["perplexity", TEXT, "--model", "other"], "other"),
        (["perplexity", FOLDER + "/model.safetensors", "--model", "demo"], "is not UTF-8"),
        (["perplexity", TEXT, "--model", "demo", "--window", "8", "--stride", "8"], "above the stride"),
        (["compare", TEXT, TEXT], "is no run"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(exact: Served, words: list[str], says: str) -> None:
    url = [] if words[0] == "compare" else ["--base-url", exact.url]
    done = evaluated(*words, *url, status=1)
    assert says in done.stderr
    assert done.stderr.startswith("penstock: ")
    assert "Traceback" not in done.stderr
