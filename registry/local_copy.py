"""A version's files as a directory here, which is complete or not there at all, whoever asks at the same time."""

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from penstock.home import home
from registry.artifacts import DRAFT, Artifacts
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
    draft = Path(tempfile.mkdtemp(dir=place.parent, prefix=DRAFT))
    try:
        write(artifacts, manifest, draft, link=True)
        put_away(place, manifest)
        with suppress(OSError):  # another process was quicker
            os.rename(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
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


def put_away(place: Path, manifest: Manifest) -> None:
    """A directory from which somebody took a file; who has it open goes on with what is there."""
    if place.exists() and not is_complete(place, manifest):
        aside = Path(tempfile.mkdtemp(dir=place.parent, prefix=DRAFT))
        with suppress(OSError):
            os.rename(place, aside / "old")
        shutil.rmtree(aside, ignore_errors=True)
