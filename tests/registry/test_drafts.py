"""Drafts of makers that live, and of those that were killed."""

import io
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from registry.artifacts import artifacts_at
from registry.drafts import DRAFT, draft_file, draft_folder, swept


def make_and_hang(parent: Path) -> None:
    """In a process of its own."""
    with draft_folder(parent) as folder, draft_file(parent) as (_, writing):
        (folder / "a").write_bytes(b"x")
        writing.write(b"x")
        (parent / "reached").touch()
        time.sleep(1000)


def test_what_is_being_made_is_spared_and_what_a_killed_maker_left_is_swept(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=make_and_hang, args=(tmp_path,))
    process.start()
    while not (tmp_path / "reached").exists():
        assert process.exitcode is None
        time.sleep(0.02)
    assert swept(tmp_path, time.time() + 100) == 0
    process.kill()
    process.join()
    assert swept(tmp_path, time.time() - 100) == 0
    assert swept(tmp_path, time.time() + 100) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["reached"]


def test_a_file_that_is_being_kept_is_not_swept_away_without_any_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = artifacts_at(str(tmp_path))
    written, go_on, replace = threading.Event(), threading.Event(), os.replace

    def late(draft: Path, place: Path) -> None:
        written.set()
        go_on.wait(30)
        replace(draft, place)

    monkeypatch.setattr(os, "replace", late)
    keeping = threading.Thread(target=artifacts.put, args=(io.BytesIO(b"x"),))
    keeping.start()
    assert written.wait(30)
    assert artifacts.tidy(time.time() + 100) == 0
    go_on.set()
    keeping.join()
    assert len(list(artifacts.all())) == 1


def test_a_link_called_like_a_draft_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"{DRAFT}link").symlink_to(tmp_path / "elsewhere")
    assert swept(tmp_path, time.time() + 100) == 0
    assert (tmp_path / "elsewhere").is_dir()
