"""A run's folder: what a kill leaves of it, and who may go on with it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from penstock.errors import Conflict, StartError
from training.run import Run, command, resolved_recipe

RECIPE = {"script": "pretrain", "seed": 1, "data": {"files": [Path("a.jsonl")]}}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def stepped(folder: Path, *, until: int, resume: bool = False, every: int = 3) -> Run:
    """A run of ten steps whose whole state is a sum; it ends, as if killed, before step `until`."""
    run = Run(folder, RECIPE, steps=10, resume=resume)
    total = run.saved["total"] if run.saved else torch.zeros(2)
    for step in range(run.first_step, until):
        total = total + step
        run.log(step, tokens=8, loss=float(total[0]), lr=0.1)
        if (step + 1) % every == 0 or step + 1 == run.steps:
            run.checkpoint(step + 1, {"total": total})
    return run


@pytest.mark.parametrize("killed_at", range(10))
def test_a_run_that_went_on_has_the_lines_of_one_that_was_never_killed(tmp_path: Path, killed_at: int) -> None:
    stepped(tmp_path / "whole", until=10)
    stepped(tmp_path / "cut", until=killed_at)
    with (tmp_path / "cut/metrics.jsonl").open("a") as cut:
        cut.write('{"step": ')
    run = stepped(tmp_path / "cut", until=10, resume=True)

    assert run.first_step == killed_at // 3 * 3
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert [line["loss"] for line in lines(tmp_path / "cut")] == [0, 1, 3, 6, 10, 15, 21, 28, 36, 45]


def test_a_run_that_failed_before_its_first_step_can_be_begun_anew(tmp_path: Path) -> None:
    Run(tmp_path, RECIPE, steps=10)
    assert Run(tmp_path, RECIPE | {"seed": 2}, steps=10).first_step == 0


def test_lines_after_the_last_checkpoint_are_written_anew(tmp_path: Path) -> None:
    run = stepped(tmp_path, until=10)
    run.log(10, exact={"greeting": 3})
    again = Run(tmp_path, RECIPE, steps=10, resume=True)
    again.log(10, exact={"greeting": 4})

    assert again.first_step == 10
    assert [line["step"] for line in lines(tmp_path)] == list(range(11))
    assert lines(tmp_path)[-1]["exact"] == {"greeting": 4}


def test_the_recipe_stands_in_the_folder_as_it_was_resolved(tmp_path: Path) -> None:
    Run(tmp_path / "run", RECIPE, steps=1).log(0)

    assert resolved_recipe(tmp_path / "run") == RECIPE | {"data": {"files": ["a.jsonl"]}}
    assert resolved_recipe(tmp_path) is None


def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path) -> None:
    stepped(tmp_path, until=4)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(Conflict, match="--resume"):
        Run(tmp_path, RECIPE, steps=10)

    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_recipe_is_refused_with_what_differs(tmp_path: Path) -> None:
    stepped(tmp_path, until=4)
    with pytest.raises(Conflict, match=r"seed: 1, now 2; data.files\[0\]: 'a.jsonl', now 'b.jsonl'"):
        Run(tmp_path, RECIPE | {"seed": 2, "data": {"files": ["b.jsonl"]}}, steps=10, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_things_is_refused_and_an_empty_one_is_begun(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday/beach.png").touch()
    with pytest.raises(Conflict, match="other things"):
        Run(tmp_path / "holiday", RECIPE, steps=10, resume=resume)
    with pytest.raises(Conflict, match="is a file"):
        Run(tmp_path / "holiday/beach.png", RECIPE, steps=10, resume=resume)

    assert Run(tmp_path / "new", RECIPE, steps=10, resume=resume).first_step == 0


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    stepped(tmp_path, until=4)
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 not all of it")
    with pytest.raises(StartError, match="cannot be read"):
        Run(tmp_path, RECIPE, steps=10, resume=True)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path: Path, loss: float) -> None:
    run = stepped(tmp_path, until=4)
    with pytest.raises(StartError, match="at step 4: choose a lower learning rate"):
        run.log(4, loss=loss)

    assert len(lines(tmp_path)) == 4


def test_the_result_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    run = stepped(tmp_path, until=10)
    with pytest.raises(FileNotFoundError), run.writing_model() as folder:
        shutil.copy(tmp_path / "nothing", folder)
    assert not run.model.exists()
    assert not run.finished

    for content in ("first", "second"):
        with run.writing_model() as folder:
            assert list(folder.iterdir()) == []
            (folder / "config.json").write_text(content)
            (folder / "config.json").chmod(0o600)
        assert [path.name for path in run.model.iterdir()] == ["config.json"]
        assert (run.model / "config.json").read_text() == content
        assert (run.model / "config.json").stat().st_mode & 0o777 == 0o644
    assert Run(tmp_path, RECIPE, steps=10, resume=True).finished


BUSY = """
import sys, time
from pathlib import Path
from training.run import Run
run = Run(Path(sys.argv[1]), {"seed": 1}, steps=10)
print("at work", flush=True)
sys.stdin.read()
"""


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUSY, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as busy:
        assert busy.stdout
        assert busy.stdout.readline() == b"at work\n"
        with pytest.raises(Conflict, match="another process is at work"):
            Run(tmp_path, {"seed": 1}, steps=10, resume=True)
        busy.kill()
    assert Run(tmp_path, {"seed": 1}, steps=10, resume=True).first_step == 0


def test_a_script_tells_what_is_wrong_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Path, Path, bool]] = []

    def train(recipe_path: Path, out: Path, *, resume: bool) -> None:
        asked.append((recipe_path, out, resume))
        raise [KeyboardInterrupt(), StartError("the data are empty")][len(asked) - 1]

    monkeypatch.setattr(sys, "argv", ["train", "a.yaml", "--out", str(tmp_path), "--resume"])
    with pytest.raises(SystemExit) as interrupted:
        command(train, "Train.")
    with pytest.raises(SystemExit) as failed:
        command(train, "Train.")

    assert asked == [(Path("a.yaml"), tmp_path, True)] * 2
    assert interrupted.value.code == 130
    assert f"go on with --out {tmp_path} --resume" in capsys.readouterr().err
    assert failed.value.code == "penstock: the data are empty"


def test_progress_says_step_loss_rate_and_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stepped(tmp_path, until=10)
    first, *_, last = capsys.readouterr().out.splitlines()

    assert first == "step 1/10  loss 0  lr 0.1"
    assert last.startswith("step 10/10  loss 45  lr 0.1  ")
    assert last.endswith(" tokens/s  0 s left")


def test_recipes_are_kept_in_order_and_readable(tmp_path: Path) -> None:
    Run(tmp_path, {"script": "pretrain", "b": "Grüße", "a": (1, 2)}, steps=1).log(0)

    assert (tmp_path / "recipe.yaml").read_text() == "script: pretrain\nb: Grüße\na:\n- 1\n- 2\n"
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["a"] == [1, 2]
