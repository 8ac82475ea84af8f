"""A version's directory: complete or not there, whoever makes it."""

import io
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

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
