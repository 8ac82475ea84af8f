"""A manifest: the files of a version, each by path, digest and size. Its own digest names the version's content.

No path of a manifest leads out of the folder that it is written into, wherever the manifest came from.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Self

from penstock.audit import canonical
from penstock.errors import BadRequest

SHA256 = re.compile(r"[0-9a-f]{64}")
LONGEST_PATH = 512


@dataclass(frozen=True, slots=True)
class File:
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """{"config.json": File(...)}. Raises BadRequest for a path or a digest that is none."""

    files: Mapping[str, File]

    def __post_init__(self) -> None:
        for path, file in self.files.items():
            check_path(path)
            if not SHA256.fullmatch(file.sha256) or file.size < 0:
                raise BadRequest(f"{path}: {file.sha256!r} is no SHA-256 in hexadecimal")
            for folder in PurePosixPath(path).parents:
                if str(folder) in self.files:
                    raise BadRequest(f"{path}: {folder} is a file here, and cannot be a folder too")

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Self:
        """As `plain` has written it."""
        return cls({path: File(str(file["sha256"]), int(file["size"])) for path, file in said.items()})

    @property
    def plain(self) -> dict[str, dict[str, Any]]:
        return {path: {"sha256": file.sha256, "size": file.size} for path, file in sorted(self.files.items())}

    @property
    def text(self) -> str:
        """One text for one content."""
        return canonical(self.plain)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())

    @property
    def blobs(self) -> dict[str, int]:
        """Digest -> size: a file that stands at two paths is one blob."""
        return {file.sha256: file.size for file in self.files.values()}

    def __iter__(self) -> Iterator[tuple[str, File]]:
        return iter(sorted(self.files.items()))


def check_path(path: str) -> None:
    """Raises BadRequest unless it is relative, plain and leads downwards."""
    wrong = (
        not path
        or len(path) > LONGEST_PATH
        or path.startswith("/")
        or any(part in ("", ".", "..") for part in path.split("/"))
        or "\\" in path
        or any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in path)
    )
    if wrong:
        raise BadRequest(f"{path[:120]!r} cannot be the path of a model's file: rename it")
