"""Where the files of all versions are kept, each once, under its SHA-256: a directory here, or any place of fsspec's.

A file is there whole or not at all: it is written under a name of its own and then comes into its place. What is read
out is hashed on the way, and nobody gets a file that is not the one that was put in.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from penstock.errors import BadRequest, PenstockError, StartError
from penstock.home import home
from registry.drafts import draft_file, swept
from registry.manifest import SHA256, File, Manifest

CHUNK = 2**20


class Damaged(PenstockError):
    """What is kept is not what was put in."""

    code = "artifact_damaged"


@dataclass(frozen=True, slots=True)
class Kept:
    """`at`: when it was written, or put in once more, in seconds since the epoch."""

    sha256: str
    size: int
    at: float


class Artifacts(Protocol):
    """All of it may wait for a disk or a network: call it in a thread."""

    def put(self, source: BinaryIO, file: File | None = None) -> File:
        """Keeps what a file holds from its beginning, which is `file` if that is known; one that is there already and
        whole counts as new. Raises BadRequest if it changes in the meantime."""

    def size(self, sha256: str) -> int | None:
        """None where there is no such file."""

    def fetch(self, file: File, target: Path, *, link: bool = True) -> None:
        """The file at `target`, which must not be there; not to be changed if it may be a link. Raises Damaged."""

    def refer(self, manifest: Manifest) -> None:
        """Notes beside the files that a version has them: a database put back to an earlier state does not know it."""

    def manifests(self) -> set[str]:
        """Digests of those that were noted."""

    def manifest(self, digest: str) -> Manifest:
        """Raises Damaged."""

    def all(self) -> Iterator[Kept]: ...

    def delete(self, sha256: str) -> None:
        """One that is not there is no error."""

    def tidy(self, before: float) -> int:
        """Deletes what writers that were killed have left; how many there were."""


def artifacts_at(place: str | None) -> Artifacts:
    """A directory, `file:///PATH` or another URL of fsspec's; None: `artifacts` in the home. Raises StartError."""
    if place and "://" in place:
        from registry.elsewhere import Elsewhere

        return Elsewhere.at(place)
    folder = Path(place).expanduser() if place else home() / "artifacts"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for part in ("sha256", "manifests"):
            (folder / part).mkdir(exist_ok=True)
    except OSError as error:
        raise StartError(f"registry.artifacts: {folder} cannot be used: {error.strerror}") from error
    return Folder(folder.resolve())


class Folder:
    """`sha256/ab/abcdef...`, read-only files, and `manifests/DIGEST.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, source: BinaryIO, file: File | None = None) -> File:
        file = file or measured(source)
        place = self._place(file.sha256)
        if is_whole(place, file):
            with suppress(PermissionError):  # another user's
                os.utime(place)
            return file
        place.parent.mkdir(exist_ok=True)
        with draft_file(self.folder) as (draft, writing):
            copied(source, writing, file)
            os.fchmod(writing.fileno(), 0o444)
            writing.flush()
            os.fsync(writing.fileno())
            os.replace(draft, place)
        sync(place.parent)
        return file

    def size(self, sha256: str) -> int | None:
        try:
            return self._place(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def fetch(self, file: File, target: Path, *, link: bool = True) -> None:
        try:
            with self._place(file.sha256).open("rb") as reading:
                if not link:
                    return write_out(reading, target, file)
                check(measured(reading), file)
                try:
                    os.link(self._place(file.sha256), target)
                except OSError:  # another file system, or one without links
                    write_out(reading, target, file)
        except FileNotFoundError as error:
            raise missing(file) from error

    def refer(self, manifest: Manifest) -> None:
        place = self.folder / "manifests" / f"{manifest.digest}.json"
        if place.exists():
            return
        with draft_file(self.folder) as (draft, writing):
            writing.write(manifest.text.encode())
            writing.flush()
            os.fsync(writing.fileno())
            os.replace(draft, place)
        sync(place.parent)

    def manifests(self) -> set[str]:
        return {place.stem for place in (self.folder / "manifests").glob("*.json") if SHA256.fullmatch(place.stem)}

    def manifest(self, digest: str) -> Manifest:
        return noted(digest, (self.folder / "manifests" / f"{digest}.json").read_bytes())

    def all(self) -> Iterator[Kept]:
        for place in (self.folder / "sha256").glob("??/*"):
            if SHA256.fullmatch(place.name):
                with suppress(FileNotFoundError):
                    found = place.stat()
                    yield Kept(place.name, found.st_size, found.st_mtime)

    def delete(self, sha256: str) -> None:
        self._place(sha256).unlink(missing_ok=True)

    def tidy(self, before: float) -> int:
        return swept(self.folder, before)

    def _place(self, sha256: str) -> Path:
        return self.folder / "sha256" / sha256[:2] / sha256


def is_whole(place: Path, file: File) -> bool:
    """A damaged one is not: it is kept anew."""
    try:
        with place.open("rb") as reading:
            return os.fstat(reading.fileno()).st_size == file.size and measured(reading) == file
    except FileNotFoundError:
        return False


def measured(source: BinaryIO) -> File:
    """From its beginning to its end."""
    source.seek(0)
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return File(digest.hexdigest(), size)


def copied(source: BinaryIO, target: BinaryIO, expected: File) -> None:
    """Raises BadRequest if it is not what it was a moment ago."""
    source.seek(0)
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
        target.write(chunk)
    if File(digest.hexdigest(), size) != expected:
        raise BadRequest("a file was changed while it was read: add the directory again when nothing writes to it")


def write_out(source: BinaryIO, target: Path, file: File) -> None:
    """A copy, or nothing. Raises Damaged."""
    source.seek(0)
    digest, size = hashlib.sha256(), 0
    try:
        with target.open("xb") as writing:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
                writing.write(chunk)
        check(File(digest.hexdigest(), size), file)
    except BaseException:  # Ctrl-C, too: no half of a file stays
        target.unlink(missing_ok=True)
        raise


def check(found: File, expected: File) -> None:
    if found != expected:
        raise Damaged(
            f"the kept file {expected.sha256} is damaged: it has {found.size} bytes of SHA-256 {found.sha256}; "
            "delete it and add the directory again, or restore it from a backup"
        )


def noted(digest: str, data: bytes) -> Manifest:
    """Raises Damaged if it is not the manifest of that digest."""
    try:
        manifest = Manifest.read(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, BadRequest):
        manifest = None
    if manifest is None or manifest.digest != digest:
        raise Damaged(
            f"manifests/{digest}.json beside the kept files is damaged, and nobody knows which of them it names: "
            "restore it from a backup, or delete it if no version has this digest"
        )
    return manifest


def missing(file: File) -> Damaged:
    return Damaged(
        f"the kept file {file.sha256} is gone: is registry.artifacts the place where the version was added? "
        "Else add the directory again, or restore it from a backup"
    )


def sync(folder: Path) -> None:
    """A name in it outlasts a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
