"""What of a directory becomes a version, and what is refused: links that lead out, and files that can run code.

Names that begin with a dot are left out, and `README.md`, which is the version's card: another card is no other model.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from penstock.errors import BadRequest
from registry.manifest import check_path

CARD = "README.md"
MOST_FILES = 10_000
LARGEST_JSON = 64 * 2**20
PICKLES = frozenset(".bin .pt .pth .pkl .pickle .ckpt .joblib .dill .pyz .zip".split())
CODE = frozenset(".py .pyc .pyd .so .dll .dylib .sh .h5 .keras".split())
UNSAFE = PICKLES | CODE
PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # as torch and Python write them
WEIGHTS = (".safetensors", ".gguf")
NAMES_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "adapter_config.json")
REMEDY = "convert it to safetensors, or say --allow-unsafe if you trust whoever made it"


def contents(folder: Path, *, allow_unsafe: bool = False) -> dict[str, Path]:
    """Relative path -> file, links followed. Raises BadRequest with the file at fault and the remedy."""
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
    if not allow_unsafe:
        for path, file in found.items():
            check_safe(path, file)
        if not any(path.lower().endswith(WEIGHTS) for path in found):
            raise BadRequest(f"{folder} has no weights: no file of it ends in {' or '.join(WEIGHTS)}")
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


def check_safe(path: str, file: Path) -> None:
    """By its name and by how it begins: a pickle runs code when it is read, whatever it is called."""
    suffix = Path(path).suffix.lower()
    if suffix in CODE:
        raise BadRequest(f"{path} is code that would run where the model is loaded: remove it, or say --allow-unsafe")
    with opened(file) as reading:
        head = reading.read(9)
    if suffix in PICKLES or (head.startswith(PICKLED) and head[8:] != b"{"):
        raise BadRequest(f"{path} is a pickle or an archive, which can run code when it is loaded: {REMEDY}")
    if suffix == ".safetensors" and head[8:] != b"{":
        raise BadRequest(f"{path} is not in the safetensors format: {REMEDY}")
    if path.rpartition("/")[2] in NAMES_CODE and names_code(parsed(path, file)):
        raise BadRequest(
            f"{path} names code of its own (auto_map), which would run where the model is loaded: "
            "take a model that transformers knows, or say --allow-unsafe"
        )


def names_code(value: Any) -> bool:
    """Whether `auto_map` stands anywhere in it."""
    if isinstance(value, dict):
        return bool(value.get("auto_map")) or any(map(names_code, value.values()))
    return isinstance(value, list) and any(map(names_code, value))


def parsed(path: str, file: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises BadRequest."""
    with opened(file) as reading:
        data = reading.read(LARGEST_JSON + 1)
    try:
        value = json.loads(data) if len(data) <= LARGEST_JSON else None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest(f"{path} is no JSON object")
    return value


def text(file: Path) -> str:
    """Raises BadRequest."""
    with opened(file) as reading:
        data = reading.read(LARGEST_JSON + 1)
    try:
        said = data.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"{file.name} is not UTF-8") from error
    if "\0" in said or len(data) > LARGEST_JSON:
        raise BadRequest(f"{file.name} is no text, or too long")
    return said
