"""A directory becomes a version: its files are kept first, then it is written down, if they are all still there."""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from penstock.errors import BadRequest, StateUnavailable
from penstock.references import Reference, check_name
from penstock.store import Store
from registry import versions
from registry.artifacts import Artifacts
from registry.directory import CARD, contents, opened, text
from registry.kinds import Kind, told
from registry.manifest import Manifest
from registry.versions import Version

TRIES = 5
LONGEST_TEXT = 2**20


@dataclass(frozen=True, slots=True)
class About:
    """What is said of a version beside its files; `parent` is a reference, `data` has SHA-256s by name."""

    name: str
    kind: Kind | None = None
    parent: str | None = None
    origin: str | None = None
    recipe: str | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    allow_unsafe: bool = False


async def add(store: Store, artifacts: Artifacts, folder: Path, about: About, by: str) -> Version:
    """Raises BadRequest with what is wrong with the directory or with what is said of it; NotFound for a parent."""
    check_about(about)
    parent = await parent_of(store, about)
    for _ in range(TRIES):
        version = await asyncio.to_thread(kept, artifacts, folder, about, parent, by)
        async with store.begin() as connection:
            await store.changed(connection, versions.ARTIFACTS)
            if await asyncio.to_thread(all_there, artifacts, version.files):
                return await versions.insert(store, connection, version)
            await connection.rollback()  # `gc` with hardly any grace was quicker: keep them once more
    raise StateUnavailable(f"the files of {folder} were deleted {TRIES} times while they were added: stop `gc`")


def check_about(about: About) -> None:
    """Raises BadRequest."""
    try:
        check_name(about.name, "a model's name")
    except ValueError as error:
        raise BadRequest(str(error)) from error
    for name, value in about.metrics.items():
        if not name or len(name) > 128 or not name.isprintable() or not math.isfinite(value):
            raise BadRequest(f"the metric {name[:128]!r} is no finite number under a plain name: {value}")
    if about.recipe and (len(about.recipe) > LONGEST_TEXT or "\0" in about.recipe):
        raise BadRequest(f"a recipe is a text of at most {LONGEST_TEXT} characters")


async def parent_of(store: Store, about: About) -> str | None:
    """By its number: an alias would lead elsewhere one day."""
    if about.parent is None:
        return None
    try:
        reference = Reference.of(about.parent)
    except ValueError as error:
        raise BadRequest(f"the parent {error}") from error
    return (await versions.find(store, reference)).reference


def kept(artifacts: Artifacts, folder: Path, about: About, parent: str | None, by: str) -> Version:
    """The files in their place, and the version as it will be written, but for its number."""
    files = contents(folder, allow_unsafe=about.allow_unsafe)
    said = {}
    for path, file in files.items():
        with opened(file) as reading:
            said[path] = artifacts.put(reading)
    manifest = Manifest(said)
    found = told(files, manifest, about.kind)
    card = folder / CARD
    return Version(
        name=about.name,
        number=0,
        kind=found.kind,
        parent=parent,
        origin=about.origin,
        digest=manifest.digest,
        files=manifest,
        template=found.template,
        tokenizer=found.tokenizer,
        recipe=about.recipe,
        data=dict(about.data),
        metrics=dict(about.metrics),
        card=text(card) if card.is_file() and not card.is_symlink() else None,
        created_at=time.time(),
        by=by[:128],
    )


def all_there(artifacts: Artifacts, manifest: Manifest) -> bool:
    return all(artifacts.size(sha256) == size for sha256, size in manifest.blobs.items())
