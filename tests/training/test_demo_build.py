"""recipes/demo/build names recipes, gates and rows that are there; `make demo` itself takes an hour or more."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import yaml

from evals.gate_file import load
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
