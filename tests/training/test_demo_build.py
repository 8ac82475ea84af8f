"""recipes/demo/build names recipes, gates and rows that are there; `make demo` itself takes an hour or more."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml

from evals.gate_file import load
from tests.penstock.test_cli import PENSTOCK
from tests.training.tuning import REPOSITORY
from training.generate import mix_of, rows

DEMO = REPOSITORY / "recipes/demo"


def steps(command: str) -> Iterator[list[str]]:
    """The words behind `command` wherever the script calls it with names."""
    for line in (DEMO / "build").read_text().splitlines():
        words = line.split("#")[0]
        if words.strip().startswith(f"{command} ") and "$" not in words:
            yield shlex.split(words)[1:]


def test_every_run_has_its_recipe_and_every_promotion_its_gate() -> None:
    trained = [run for run, _ in steps("train")]
    assert {"pretrain", "sft", "dpo", "terse", "caller"} == set(trained)
    for run in [*trained, "int8", "gptq", "awq"]:
        assert (DEMO / f"{run}.yaml").is_file()
    promoted = list(steps("promote"))
    assert {run for run, _, _ in promoted} == set(trained)
    for _, _, gate in promoted:
        assert load(DEMO / f"{gate}.yaml").tasks


def test_every_run_reads_rows_that_are_generated_before_it() -> None:
    generated = {Path("runs/demo/data", file): words for file, *words in steps("generate")}
    read = {
        Path(data["path"])
        for run, _ in steps("train")
        for data in yaml.safe_load((DEMO / f"{run}.yaml").read_text()).get("data", [])
    }
    assert read == generated.keys()
    for source, *options in generated.values():
        pairs = "--pairs" in options
        mix = mix_of(str(REPOSITORY / source) if "/" in source else source, pairs=pairs)
        assert len(list(rows(mix, 2, 1, pairs=pairs))) == 2


def test_what_was_cut_short_is_done_again_and_what_is_done_is_not(tmp_path: Path) -> None:
    """There is no gate here, so that no engine is asked."""
    (tmp_path / "recipes/demo").mkdir(parents=True)
    script = Path(shutil.copy(DEMO / "build", tmp_path / "recipes/demo/build"))
    env = os.environ | {"VENV": str(Path(PENSTOCK).parents[1]), "PENSTOCK_HOME": str(tmp_path / "home")}
    version = tmp_path / "runs/demo/pretrain.version"

    def built(weights: Path) -> str:
        done = subprocess.run([script, weights], env=env, check=False, capture_output=True, text=True)
        assert done.returncode
        return done.stderr

    for _ in range(2):
        assert "nowhere" in built(tmp_path / "nowhere")
        assert not version.exists()
    for _ in range(2):
        assert "recipes/demo/gate.yaml" in built(DEMO / "model")
        assert version.read_text() == "demo@1\n"
    assert not version.with_suffix(".promoted").exists()
