"""A version's directory: complete or not there, whoever makes it."""

import io
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from registry import local_copy as module
from registry.artifacts import Artifacts, Damaged, artifacts_at
from registry.local_copy import local_copy
from registry.manifest import Manifest
from tests.registry.conftest import all_files

FILES = {f"part-{number}/w": bytes([number]) * 1000 for number in range(30)}


def kept(artifacts: Artifacts) -> Manifest:
    return Manifest({path: artifacts.put(io.BytesIO(content)) for path, content in FILES.items()})


def copy_it(place: str, home: str) -> None:
    """In a process of its own: whenever the directory is there, it is whole."""
    os.environ["PENSTOCK_HOME"] = home
    artifacts = artifacts_at(place)
    assert all_files(local_copy(artifacts, kept(artifacts))) == FILES


@pytest.mark.parametrize("url", ["{}", "file://{}"])
def test_processes_that_ask_at_once_get_one_whole_directory(tmp_path: Path, home: Path, url: str) -> None:
    place = url.format(tmp_path / "kept")
    artifacts = artifacts_at(place)
    manifest = kept(artifacts)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=copy_it, args=(place, str(home))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert [entry.name for entry in (home / "models").iterdir()] == [manifest.digest]


def test_where_a_file_is_missing_no_directory_comes_to_be(folder: Artifacts, home: Path) -> None:
    manifest = kept(folder)
    folder.delete(manifest.files["part-29/w"].sha256)
    with pytest.raises(Damaged, match="is gone"):
        local_copy(folder, manifest)
    assert list((home / "models").iterdir()) == []


def test_a_directory_that_lost_a_file_is_made_anew(artifacts: Artifacts) -> None:
    manifest = kept(artifacts)
    place = local_copy(artifacts, manifest)
    (place / "part-3" / "w").unlink()
    shutil.rmtree(place / "part-4")
    assert local_copy(artifacts, manifest) == place
    assert all_files(place) == FILES
    assert [entry.name for entry in place.parent.iterdir()] == [place.name]


def test_one_that_is_there_is_taken_as_it_is(folder: Artifacts) -> None:
    manifest = kept(folder)
    place = local_copy(folder, manifest)
    made = place.stat().st_ino
    for sha256 in manifest.blobs:
        folder.delete(sha256)
    assert local_copy(folder, manifest).stat().st_ino == made


def copy_and_hang(place: str, home: str) -> None:
    """In a process of its own: an engine's start that is killed."""
    os.environ["PENSTOCK_HOME"] = home
    artifacts = artifacts_at(place)
    manifest = kept(artifacts)

    def hang(*_: object, **__: object) -> None:
        Path(home, "reached").touch()
        time.sleep(1000)

    artifacts.fetch = hang  # type: ignore[method-assign]
    local_copy(artifacts, manifest)


def test_what_a_killed_start_left_is_swept_up_by_the_next(tmp_path: Path, home: Path) -> None:
    place = str(tmp_path / "kept")
    home.mkdir()
    process = multiprocessing.get_context("spawn").Process(target=copy_and_hang, args=(place, str(home)))
    process.start()
    while not (home / "reached").exists():
        assert process.exitcode is None
        time.sleep(0.02)
    artifacts = artifacts_at(place)
    left = list((home / "models").iterdir())
    made = local_copy(artifacts, Manifest({"w": artifacts.put(io.BytesIO(b"x"))}))
    assert sorted((home / "models").iterdir()) == sorted([*left, made])  # it is being made still
    process.kill()
    process.join()
    manifest = kept(artifacts)
    local_copy(artifacts, manifest)
    assert {entry.name for entry in (home / "models").iterdir()} == {made.name, manifest.digest}


def test_a_whole_directory_that_came_in_the_meantime_is_not_put_away(
    folder: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = kept(folder)
    place = local_copy(folder, manifest)
    (place / "part-3" / "w").unlink()
    wrote = module.write

    def and_another_is_quicker(*words: Any, **named: Any) -> None:
        monkeypatch.setattr(module, "write", wrote)
        made.append(local_copy(folder, manifest).stat().st_ino)
        wrote(*words, **named)

    made: list[int] = []
    monkeypatch.setattr(module, "write", and_another_is_quicker)
    assert [local_copy(folder, manifest).stat().st_ino] == made
