"""A version's files as a directory here, which is complete or not there at all, whoever asks at the same time."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from penstock.home import home
from registry.artifacts import Artifacts
from registry.drafts import draft_folder, swept
from registry.manifest import Manifest
from registry.versions import Version


@dataclass(frozen=True, slots=True)
class Placed:
    """A version, and its files in a directory of this machine that is not to be written to."""

    version: Version
    folder: Path


def copies() -> Path:
    """The folder of the home that has them, each under the manifest's digest."""
    folder = home() / "models"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def local_copy(artifacts: Artifacts, manifest: Manifest) -> Path:
    """Made when it is first asked for, of files that are verified; not to be written to. Raises Damaged."""
    place = copies() / manifest.digest
    if is_complete(place, manifest):
        return place
    swept(place.parent, time.time())
    with draft_folder(place.parent) as draft, draft_folder(place.parent) as aside:
        write(artifacts, manifest, draft, link=True)
        with one_at_a_time(place.parent):
            put_in_place(draft, place, aside, manifest)
    if not is_complete(place, manifest):
        raise OSError(f"{place} cannot be made")
    return place


def write(artifacts: Artifacts, manifest: Manifest, folder: Path, *, link: bool) -> None:
    """Every file of a manifest, whose paths are known to lead downwards, into an empty folder."""
    for path, file in manifest:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        artifacts.fetch(file, target, link=link)


def is_complete(place: Path, manifest: Manifest) -> bool:
    """By names and sizes: to hash a large model would take longer than to load it."""
    try:
        return all((place / path).stat().st_size == file.size for path, file in manifest)
    except (FileNotFoundError, NotADirectoryError):
        return False


def put_in_place(draft: Path, place: Path, aside: Path, manifest: Manifest) -> None:
    """Unless another process was quicker. One from which somebody took a file is put away: who has it open goes on."""
    if is_complete(place, manifest):
        return
    with suppress(FileNotFoundError):
        os.rename(place, aside / "old")
    os.rename(draft, place)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Among all processes: between the look and the move nobody else makes the directory whole."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
