"""Where state is kept, and what is cleaned up there."""

import os
import platform
from pathlib import Path

import pytest

from penstock.home import home, run_dir


def test_the_state_folder_is_made_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "a" / "b"))
    assert home().stat().st_mode & 0o777 == 0o700


def test_what_a_killed_process_left_is_removed_and_what_runs_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    monkeypatch.setattr("penstock.home.LONGEST_RUN_DIR", 1000)
    node = platform.node()
    names = [f"{node}:999999999", f"{node}:1", "elsewhere:999999999"]
    for name in names:
        (tmp_path / "run" / name).mkdir(parents=True)
    assert run_dir().name == f"{node}:{os.getpid()}"
    assert [(tmp_path / "run" / name).exists() for name in names] == [False, True, True]


def test_a_path_too_long_for_a_socket_is_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 90)
    monkeypatch.setenv("PENSTOCK_HOME", str(deep))
    path = run_dir()
    assert len(str(path)) < 60
    path.rmdir()
