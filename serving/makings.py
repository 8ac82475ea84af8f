"""What stands around a served model, as text: another one as soon as any of it is, and the same after a restart.

For who compares the answers of two days (`penstock eval --out`).
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from guards.places import stamp
from penstock.config import Config, WrongAt
from penstock.steps import Listed, Table, Written
from serving.composing import GUARD, IN_POLICIES, STEPS, parsed


def makings(config: Config, steps: Listed, guards: Sequence[str]) -> str:
    """Of steps behind policies of the configuration's `guards`, as they are written, with those that the steps name
    and the digests of all files that are read."""
    inside = [str(options.get("name")) for step in steps for kind, options in step.items() if kind == GUARD]
    policies = {name: config.guards.get(name, [{name: {}}]) for name in [*guards, *inside]}
    folder = Path(config.files or ".")
    read = files_of(folder, [*in_steps(steps), *in_policies(policies.values())])
    digests = [(os.path.relpath(file, folder), digest_of(file, stamp(file))) for file in read]
    return repr((settled(steps), list(guards), settled(policies), digests))


def in_steps(steps: Listed) -> list[tuple[Table, Written]]:
    return [(STEPS, step) for step in steps]


def in_policies(policies: Iterable[Listed]) -> list[tuple[Table, Written]]:
    return [(IN_POLICIES, guard) for policy in policies for guard in policy]


def files_of(folder: Path, written: Iterable[tuple[Table, Written]]) -> list[Path]:
    """All that these steps and guards read, in order."""
    files: set[Path] = set()
    for table, step in written:
        with suppress(WrongAt):  # `check` says so
            files.update(parsed(step, (), table).files(folder))
    return sorted(files)


@lru_cache(maxsize=1024)
def digest_of(file: Path, stamp: object) -> str | None:
    """None of what is no file, such as a folder, and of one that cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def settled(value: Any) -> Any:
    """In an order that is always the same, whatever the order of names in the file."""
    if isinstance(value, Mapping):
        return sorted(((str(name), settled(part)) for name, part in value.items()), key=lambda pair: pair[0])
    return [settled(part) for part in value] if isinstance(value, list | tuple) else value
