"""Files kept by their digests, in a folder and in fsspec's places: whole, once, and told when they are damaged."""

import hashlib
import io
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.errors import BadRequest, StartError, StateUnavailable
from registry.artifacts import Artifacts, Damaged, Folder, artifacts_at
from registry.drafts import DRAFT, swept
from registry.elsewhere import Elsewhere
from registry.manifest import File

DATA = b"weights" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


def test_what_is_put_in_comes_out_once_and_the_same(artifacts: Artifacts, tmp_path: Path) -> None:
    file = artifacts.put(io.BytesIO(DATA))
    assert file == File(DIGEST, len(DATA))
    assert artifacts.put(io.BytesIO(DATA)) == file
    assert [(kept.sha256, kept.size) for kept in artifacts.all()] == [(DIGEST, len(DATA))]
    assert artifacts.size(DIGEST) == len(DATA)
    artifacts.fetch(file, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


def test_what_is_kept_has_an_age(artifacts: Artifacts) -> None:
    artifacts.put(io.BytesIO(DATA))
    (kept,) = artifacts.all()
    assert abs(kept.at - time.time()) < 60


def test_what_is_deleted_is_gone_and_that_is_told(artifacts: Artifacts, tmp_path: Path) -> None:
    file = artifacts.put(io.BytesIO(DATA))
    artifacts.delete(DIGEST)
    artifacts.delete(DIGEST)
    assert artifacts.size(DIGEST) is None
    assert list(artifacts.all()) == []
    with pytest.raises(Damaged, match=r"is gone: is registry.artifacts the place"):
        artifacts.fetch(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("link", [True, False])
@pytest.mark.parametrize("url", ["{}", "file://{}"])
def test_a_damaged_file_is_not_given_out(tmp_path: Path, url: str, link: bool) -> None:
    artifacts = artifacts_at(url.format(tmp_path / "kept"))
    file = artifacts.put(io.BytesIO(DATA))
    (place,) = (tmp_path / "kept" / "sha256").rglob(DIGEST)
    place.chmod(0o600)
    place.write_bytes(b"W" + DATA[1:])
    with pytest.raises(Damaged, match=f"{DIGEST} is damaged"):
        artifacts.fetch(file, tmp_path / "out", link=link)
    assert not (tmp_path / "out").exists()


def test_a_file_that_was_cut_short_is_written_anew(tmp_path: Path) -> None:
    artifacts = artifacts_at(str(tmp_path / "kept"))
    artifacts.put(io.BytesIO(DATA))
    (place,) = (tmp_path / "kept" / "sha256").rglob(DIGEST)
    place.chmod(0o600)
    place.write_bytes(DATA[:10])
    artifacts.fetch(artifacts.put(io.BytesIO(DATA)), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


@pytest.mark.parametrize("url", ["{}", "file://{}"])
def test_a_damaged_file_of_the_right_size_is_healed_by_putting_it_in_again(tmp_path: Path, url: str) -> None:
    artifacts = artifacts_at(url.format(tmp_path / "kept"))
    artifacts.put(io.BytesIO(DATA))
    (place,) = (tmp_path / "kept" / "sha256").rglob(DIGEST)
    place.chmod(0o600)
    place.write_bytes(b"W" + DATA[1:])
    artifacts.fetch(artifacts.put(io.BytesIO(DATA)), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


def test_a_file_that_another_user_has_kept_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = artifacts_at(str(tmp_path / "kept"))
    file = artifacts.put(io.BytesIO(DATA))

    def refused(place: Path) -> None:
        raise PermissionError(1, "Operation not permitted")  # as the kernel says of another user's file

    monkeypatch.setattr(os, "utime", refused)
    assert artifacts.put(io.BytesIO(DATA)) == file


class Changing(io.BytesIO):
    """A file to which somebody writes between the first reading and the second."""

    times = 0

    def seek(self, to: int, whence: int = 0, /) -> int:
        self.times += 1
        if self.times == 2:
            super().seek(0)
            self.write(b"other")
        return super().seek(to, whence)


def test_a_file_that_changes_while_it_is_read_is_refused_and_leaves_nothing(artifacts: Artifacts) -> None:
    with pytest.raises(BadRequest, match="was changed while it was read"):
        artifacts.put(Changing(DATA))
    assert list(artifacts.all()) == []
    assert artifacts.tidy(time.time() + 100) == 0


def test_a_copy_may_be_changed_and_a_link_costs_no_space(tmp_path: Path) -> None:
    artifacts = artifacts_at(str(tmp_path / "kept"))
    file = artifacts.put(io.BytesIO(DATA))
    artifacts.fetch(file, tmp_path / "link")
    artifacts.fetch(file, tmp_path / "copy", link=False)
    assert (tmp_path / "link").stat().st_nlink == 2
    assert (tmp_path / "copy").stat().st_nlink == 1
    (tmp_path / "copy").write_bytes(b"changed")
    artifacts.fetch(file, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == DATA


def test_what_is_put_in_again_counts_as_new(tmp_path: Path) -> None:
    artifacts = artifacts_at(str(tmp_path / "kept"))
    artifacts.put(io.BytesIO(DATA))
    (place,) = (tmp_path / "kept" / "sha256").rglob(DIGEST)
    os.utime(place, (1, 1))
    artifacts.put(io.BytesIO(DATA))
    assert time.time() - next(iter(artifacts.all())).at < 60


def test_what_killed_writers_left_is_tidied_up_and_what_is_young_spared(tmp_path: Path) -> None:
    artifacts = artifacts_at(str(tmp_path / "kept"))
    for age in (1000, 0):
        draft = tmp_path / "kept" / f"{DRAFT}{age}"
        draft.write_bytes(DATA)
        os.utime(draft, (time.time() - age, time.time() - age))
    (tmp_path / "kept" / f"{DRAFT}folder").mkdir()
    assert artifacts.tidy(time.time() - 100) == 1
    assert swept(tmp_path / "kept", time.time() + 100) == 2 or not list((tmp_path / "kept").glob(f"{DRAFT}1000"))
    assert (tmp_path / "kept" / "sha256").is_dir()


def put_many(place: str) -> None:
    artifacts = artifacts_at(place)
    for number in range(20):
        artifacts.put(io.BytesIO(DATA + bytes([number])))


@pytest.mark.parametrize("url", ["{}", "file://{}"])
def test_processes_that_keep_the_same_files_at_once_keep_each_once(tmp_path: Path, url: str) -> None:
    place = url.format(tmp_path / "kept")
    processes = [multiprocessing.get_context("spawn").Process(target=put_many, args=(place,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 3
    artifacts = artifacts_at(place)
    kept = list(artifacts.all())
    assert len(kept) == 20
    for number, file in enumerate(kept):
        artifacts.fetch(File(file.sha256, file.size), tmp_path / f"out-{number}")
    assert not list((tmp_path / "kept").glob(f"{DRAFT}*"))


@pytest.mark.parametrize(
    ("place", "message"),
    [("nosuch://a/b", "nosuch:// cannot be used"), ("/proc/nothing/here", "registry.artifacts: /proc/nothing/here")],
)
def test_a_place_that_cannot_be_used_is_told(place: str, message: str) -> None:
    with pytest.raises(StartError, match=message):
        artifacts_at(place)


def test_without_a_place_the_home_is_taken(home: Path) -> None:
    artifacts = artifacts_at(None)
    assert isinstance(artifacts, Folder)
    assert artifacts.folder == (home / "artifacts").resolve()
    assert (home / "artifacts").stat().st_mode & 0o777 == 0o700


class NoCredentialsError(Exception):
    """As botocore has it: of no class that anybody else knows."""


ASKED: dict[str, Callable[[Artifacts, File], object]] = {
    "info": lambda artifacts, file: artifacts.size(file.sha256),
    "find": lambda artifacts, file: artifacts.all(),
    "open": lambda artifacts, file: artifacts.fetch(file, Path("absent")),
    "makedirs": lambda artifacts, file: artifacts.put(io.BytesIO(b"new")),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_a_driver_raises_of_its_own_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    artifacts = artifacts_at(f"memory://{tmp_path.name}")
    assert isinstance(artifacts, Elsewhere)
    file = artifacts.put(io.BytesIO(DATA))

    def refused(*_: object, **__: object) -> None:
        raise NoCredentialsError("Unable to locate credentials at https://a/b?X-Amz-Signature=secret")

    monkeypatch.setattr(artifacts.system, what, refused)
    with pytest.raises(StateUnavailable, match="memory:// failed with NoCredentialsError: Unable to loc") as raised:
        ASKED[what](artifacts, file)
    assert "secret" not in raised.value.message
