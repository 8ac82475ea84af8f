"""What of a directory becomes a version, and what is refused: links that lead out, and files that can run code.

Names that begin with a dot are left out, and `README.md`, which is the version's card: another card is no other model.
"""

import io
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from penstock.errors import BadRequest
from registry.artifacts import measured
from registry.manifest import File, check_path

CARD = "README.md"
MOST_FILES = 10_000
LARGEST_TEXT = 64 * 2**20
HEAD = 9
PICKLES = frozenset(".bin .pt .pth .pkl .pickle .ckpt .joblib .dill .pyz .zip".split())
CODE = frozenset(".py .pyc .pyd .so .dll .dylib .sh .h5 .keras".split())
UNSAFE = PICKLES | CODE
PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # as torch and Python write them
WEIGHTS = (".safetensors", ".gguf")
CONFIGURATION = "config.json"  # how the name of every file ends in which transformers looks for `auto_map`
READ_WHOLE = (CONFIGURATION, "chat_template.jinja")
REMEDY = "convert it to safetensors, or say --allow-unsafe if you trust whoever made it"


@dataclass(frozen=True, slots=True)
class Taken:
    """A file as it was read once: what is checked and told is what will be kept. `whole` only for what is looked into,
    and at most a byte more than the largest."""

    path: str
    place: Path
    file: File
    head: bytes
    whole: bytes | None

    @classmethod
    def of(cls, path: str, place: Path) -> Self:
        """Raises BadRequest."""
        with opened(place) as reading:
            head = reading.read(HEAD)
            reading.seek(0)
            if not path.endswith(READ_WHOLE) or os.fstat(reading.fileno()).st_size > LARGEST_TEXT:
                return cls(path, place, measured(reading), head, None)
            whole = reading.read()
        return cls(path, place, measured(io.BytesIO(whole)), whole[:HEAD], whole)

    @property
    def text(self) -> str:
        """Raises BadRequest."""
        if self.whole is None:
            raise BadRequest(f"{self.path} is longer than {LARGEST_TEXT >> 20} MiB")
        return decoded(self.path, self.whole)

    @property
    def json(self) -> dict[str, Any]:
        """Raises BadRequest."""
        return parsed(self.path, self.text)


def taken(folder: Path, *, allow_unsafe: bool = False) -> dict[str, Taken]:
    """By relative path; links are followed. Raises BadRequest with the file at fault and the remedy."""
    files = {path: Taken.of(path, place) for path, place in contents(folder).items()}
    if not allow_unsafe:
        for file in files.values():
            check_safe(file)
        if not any(path.lower().endswith(WEIGHTS) for path in files):
            raise BadRequest(f"{folder} has no weights: no file of it ends in {' or '.join(WEIGHTS)}")
    return files


def contents(folder: Path) -> dict[str, Path]:
    """Relative path -> file, links followed. Raises BadRequest."""
    if not folder.is_dir():
        raise BadRequest(f"{folder} is no directory")
    root = folder.resolve()
    found = dict(sorted(walked(root, root)))
    if len(found) > MOST_FILES:
        raise BadRequest(f"{folder} has {len(found)} files; a version has at most {MOST_FILES}")
    if not found:
        raise BadRequest(f"{folder} is empty")
    for path in found:
        check_path(path)
    return found


def walked(folder: Path, root: Path) -> Iterator[tuple[str, Path]]:
    with os.scandir(folder) as scanned:
        entries = list(scanned)
    for entry in entries:
        path = Path(entry.path)
        shown = path.relative_to(root).as_posix()
        if entry.name.startswith(".") or shown == CARD:
            continue
        if entry.is_symlink():
            yield shown, followed(path, root)
        elif entry.is_dir():
            yield from walked(path, root)
        elif entry.is_file():
            yield shown, path
        else:
            raise BadRequest(f"{shown} is neither a file nor a directory: remove it")


def followed(link: Path, root: Path) -> Path:
    """Where a link leads, if that is a file of the same directory."""
    shown = link.relative_to(root)
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise BadRequest(f"{shown} is a link that leads nowhere: remove it") from error
    if not target.is_relative_to(root):
        raise BadRequest(f"{shown} is a link that leads out of the directory: put the file itself there (cp -rL)")
    if not target.is_file():
        raise BadRequest(f"{shown} is a link to what is no file: put the files themselves there (cp -rL)")
    return target


def opened(file: Path) -> BinaryIO:
    """For reading; a link or a pipe that has come into its place since it was found is refused."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadRequest(f"{file} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadRequest(f"{file} is no regular file any more")
    return os.fdopen(descriptor, "rb")


def check_safe(file: Taken) -> None:
    """By its name and by how it begins: a pickle runs code when it is read, whatever it is called."""
    path, suffix = file.path, Path(file.path).suffix.lower()
    if suffix in CODE:
        raise BadRequest(f"{path} is code that would run where the model is loaded: remove it, or say --allow-unsafe")
    is_safetensors = suffix == ".safetensors" and file.head[8:] == b"{"  # the length before it may look like a pickle
    if suffix in PICKLES or (file.head.startswith(PICKLED) and not is_safetensors):
        raise BadRequest(f"{path} is a pickle or an archive, which can run code when it is loaded: {REMEDY}")
    if suffix == ".safetensors" and not is_safetensors:
        raise BadRequest(f"{path} is not in the safetensors format: {REMEDY}")
    if path.endswith(CONFIGURATION) and names_code(file.json):
        raise BadRequest(
            f"{path} names code of its own (auto_map), which would run where the model is loaded: "
            "take a model that transformers knows, or say --allow-unsafe"
        )


def names_code(value: Any) -> bool:
    """Whether `auto_map` stands anywhere in it."""
    if isinstance(value, dict):
        return bool(value.get("auto_map")) or any(map(names_code, value.values()))
    return isinstance(value, list) and any(map(names_code, value))


def parsed(path: str, said: str) -> dict[str, Any]:
    """Raises BadRequest for what is no JSON object."""
    try:
        value = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest(f"{path} is no JSON object")
    return value


def text(file: Path) -> str:
    """Raises BadRequest."""
    with opened(file) as reading:
        data = reading.read(LARGEST_TEXT + 1)
    if len(data) > LARGEST_TEXT:
        raise BadRequest(f"{file.name} is longer than {LARGEST_TEXT >> 20} MiB")
    return decoded(file.name, data)


def decoded(path: str, data: bytes) -> str:
    try:
        said = data.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"{path} is not UTF-8") from error
    if "\0" in said:
        raise BadRequest(f"{path} is no text")
    return said
