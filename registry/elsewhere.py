"""Artifacts in a place of fsspec's: s3://BUCKET/PREFIX, gs://, abfs://, file://, memory:// ...

Who may write there is for the environment to say (AWS_ACCESS_KEY_ID and the like), as fsspec's drivers read it.
"""

import functools
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Concatenate, ParamSpec, Self, TypeVar

from penstock.errors import PenstockError, StartError, StateUnavailable
from registry.artifacts import Kept, copied, measured, missing, noted, write_out
from registry.drafts import DRAFT, UNLOCKED_S
from registry.manifest import SHA256, File, Manifest

P = ParamSpec("P")
T = TypeVar("T")

NEVER = 0.0
OBJECT_STORES = frozenset("s3 s3a gs gcs abfs abfss az oci oss".split())
"""These check what they are given and keep it whole."""


def answered(method: Callable[Concatenate["Elsewhere", P], T]) -> Callable[Concatenate["Elsewhere", P], T]:
    """A driver lets the errors of its own libraries through (no credentials, no connection): StateUnavailable."""

    @functools.wraps(method)
    def asked(self: "Elsewhere", /, *words: P.args, **named: P.kwargs) -> T:
        try:
            return method(self, *words, **named)
        except (OSError, PenstockError):
            raise
        except Exception as error:  # each driver has a library of its own, with errors of its own
            raise StateUnavailable(f"registry.artifacts: {self.protocols[0]}:// {first_line(error)}") from error

    return asked


def first_line(error: BaseException) -> str:
    """Without what may be a secret's place: addresses with a query are signed ones."""
    said = (str(error).strip().splitlines() or [""])[0]
    return f"failed with {type(error).__name__}: {said.partition('?')[0][:200]}"


class Elsewhere:
    """The same layout as a folder's: PREFIX/sha256/ab/abcdef..."""

    def __init__(self, system: Any, root: str) -> None:
        self.system = system
        self.root = root.rstrip("/")

    @classmethod
    def at(cls, url: str) -> Self:
        """Raises StartError, without the URL's user and password."""
        scheme = url.partition("://")[0]
        try:
            import fsspec
        except ImportError as error:
            remedy = f"pip install fsspec and its driver for {scheme}"
            raise StartError(f"registry.artifacts: a {scheme}:// URL needs fsspec: {remedy}") from error
        try:
            system, root = fsspec.core.url_to_fs(url, skip_instance_cache=scheme != "memory")
        except (ImportError, ValueError) as error:
            raise StartError(f"registry.artifacts: {scheme}:// cannot be used: {error}") from error
        except Exception as error:  # of the driver's libraries
            raise StartError(f"registry.artifacts: {scheme}:// {first_line(error)}") from error
        return cls(system, root)

    @answered
    def put(self, source: BinaryIO, file: File | None = None) -> File:
        file = file or measured(source)
        place = self._place(file.sha256)
        if self.size(file.sha256) == file.size and self._is_whole(place, file):
            return file
        draft = f"{self.root}/{DRAFT}{uuid.uuid4().hex}"  # elsewhere too: a write that fails may leave what it has
        self.system.makedirs(self.root, exist_ok=True)
        try:
            with self.system.open(draft, "wb") as writing:
                copied(source, writing, file)
        except BaseException:  # Ctrl-C, too: no draft stays
            if self.system.exists(draft):
                self.system.rm_file(draft)
            raise
        self.system.makedirs(place.rpartition("/")[0], exist_ok=True)
        if self.size(file.sha256) is not None:  # a damaged one, which not every driver moves over
            self.system.rm_file(place)
        self.system.mv(draft, place)
        return file

    @answered
    def size(self, sha256: str) -> int | None:
        try:
            self.system.invalidate_cache()
            return int(self.system.info(self._place(sha256))["size"])
        except FileNotFoundError:
            return None

    @answered
    def fetch(self, file: File, target: Path, *, link: bool = True) -> None:
        try:
            with self.system.open(self._place(file.sha256), "rb") as reading:
                write_out(reading, target, file)
        except FileNotFoundError as error:
            raise missing(file) from error

    @answered
    def refer(self, manifest: Manifest) -> None:
        place = f"{self.root}/manifests/{manifest.digest}.json"
        self.system.invalidate_cache()
        if not self.system.exists(place):
            self.system.makedirs(f"{self.root}/manifests", exist_ok=True)
            self.system.pipe_file(place, manifest.text.encode())

    @answered
    def manifests(self) -> set[str]:
        self.system.invalidate_cache()
        names = [str(place).rpartition("/")[2] for place in self.system.find(f"{self.root}/manifests")]
        return {name[:64] for name in names if name[64:] == ".json" and SHA256.fullmatch(name[:64])}

    @answered
    def manifest(self, digest: str) -> Manifest:
        return noted(digest, self.system.cat_file(f"{self.root}/manifests/{digest}.json"))

    @answered
    def all(self) -> Iterator[Kept]:
        self.system.invalidate_cache()
        found = self.system.find(f"{self.root}/sha256", detail=True)
        named = {str(place).rpartition("/")[2]: said for place, said in found.items()}
        return iter(
            [Kept(name, int(said["size"]), seconds(said)) for name, said in named.items() if SHA256.fullmatch(name)]
        )

    @answered
    def delete(self, sha256: str) -> None:
        try:
            self.system.rm_file(self._place(sha256))
        except FileNotFoundError:
            return

    @answered
    def tidy(self, before: float) -> int:
        if not self.system.exists(self.root):
            return 0
        before = min(before, time.time() - UNLOCKED_S)  # nobody can tell whether its writer lives
        left = [found for found in self.system.ls(self.root, detail=True) if f"/{DRAFT}" in found["name"]]
        old = [found["name"] for found in left if NEVER < seconds(found) < before]
        for name in old:
            self.system.rm_file(name)
        return len(old)

    def _is_whole(self, place: str, file: File) -> bool:
        """Read again but where the place itself sees to that, for what would cost as much as to write it anew."""
        if not OBJECT_STORES.isdisjoint(self.protocols):
            return True
        with self.system.open(place, "rb") as reading:
            return measured(reading) == file

    @property
    def protocols(self) -> tuple[str, ...]:
        said = self.system.protocol
        return (said,) if isinstance(said, str) else tuple(said)

    def _place(self, sha256: str) -> str:
        return f"{self.root}/sha256/{sha256[:2]}/{sha256}"


def seconds(found: dict[str, Any]) -> float:
    """When it was written, as each driver says it; 0 where none does."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        said = found.get(name)
        if isinstance(said, str):
            said = datetime.fromisoformat(said)
        if isinstance(said, datetime):
            return (said if said.tzinfo else said.replace(tzinfo=UTC)).timestamp()
        if said is not None:
            return float(said)
    return NEVER
