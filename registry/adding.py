"""A directory becomes a version: its files are claimed, so that no collection deletes them, kept, and referred to.

The database is never held while files are read or written.
"""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from penstock.errors import BadRequest, StateUnavailable
from penstock.references import Reference, check_name
from penstock.store import UNAVAILABLE, Store
from registry import versions
from registry.artifacts import Artifacts
from registry.claims import claim, drop, hold
from registry.directory import CARD, Taken, opened, taken, text
from registry.kinds import Kind, told
from registry.lineage import beneath
from registry.manifest import SHA256, Manifest
from registry.versions import Version

log = logging.getLogger("penstock.registry")

TRIES = 3
LONGEST_TEXT = 2**20
LONGEST_ORIGIN = 256


@dataclass(frozen=True, slots=True)
class About:
    """What is said of a version beside its files; `parent` is a reference, `base` one of the whole model beneath a
    parent that is an adapter, `data` has SHA-256s by name."""

    name: str
    kind: Kind | None = None
    parent: str | None = None
    base: str | None = None
    origin: str | None = None
    recipe: str | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    allow_unsafe: bool = False


async def add(store: Store, artifacts: Artifacts, folder: Path, about: About, by: str) -> Version:
    """Raises BadRequest with what is wrong with the directory or with what is said of it; NotFound for a parent."""
    check_about(about)
    parent = await parent_of(store, about)
    files = await asyncio.to_thread(taken, folder, allow_unsafe=about.allow_unsafe)
    version = await asyncio.to_thread(described, files, folder, about, parent, by)
    claimant = uuid.uuid4().hex
    try:
        for _ in range(TRIES):
            await claim(store, claimant, version.files.blobs)
            await asyncio.to_thread(keep, artifacts, files)
            if added := await written_down(store, version, claimant):
                await note(artifacts, added)
                return added
    except BaseException:  # Ctrl-C, too: what is not added claims nothing
        with suppress(*UNAVAILABLE):
            async with store.begin() as connection:
                await drop(connection, claimant)
        raise
    raise StateUnavailable(f"the files of {folder} took longer than a day to write, {TRIES} times")


async def written_down(store: Store, version: Version, claimant: str) -> Version | None:
    """None where the claims have run out, so that a collection may have deleted what was kept."""
    async with store.begin() as connection:
        await store.changed(connection, versions.ARTIFACTS)
        if not await hold(connection, claimant, version.files.blobs):
            return None
        await drop(connection, claimant)
        return await versions.insert(store, connection, version)


async def note(artifacts: Artifacts, version: Version) -> None:
    """What fails here, the next collection does."""
    try:
        await asyncio.to_thread(artifacts.refer, version.files)
    except Exception as error:  # a place of fsspec's raises what its driver does
        log.warning("%s is added, but not noted beside its files yet: %s", version.reference, error)


def check_about(about: About) -> None:
    """Raises BadRequest."""
    try:
        check_name(about.name, "a model's name")
    except ValueError as error:
        raise BadRequest(str(error)) from error
    for name, value in about.metrics.items():
        if not is_plain(name) or not math.isfinite(value):
            raise BadRequest(f"the metric {name[:128]!r} is no finite number under a plain name: {value}")
    for name, digest in about.data.items():
        if not is_plain(name) or not SHA256.fullmatch(digest):
            raise BadRequest(f"the data {name[:128]!r} is no SHA-256 under a plain name: {digest[:128]!r}")
    if about.origin and len(about.origin) > LONGEST_ORIGIN:
        raise BadRequest(f"an origin has at most {LONGEST_ORIGIN} characters: {about.origin[:128]!r}")
    if about.recipe and (len(about.recipe) > LONGEST_TEXT or "\0" in about.recipe):
        raise BadRequest(f"a recipe is a text of at most {LONGEST_TEXT} characters")


def is_plain(name: str) -> bool:
    return 0 < len(name) <= 128 and name.isprintable()


async def parent_of(store: Store, about: About) -> str | None:
    """By its number: an alias would lead elsewhere one day. An adapter only where `about.base` is known to be beneath
    it, else that itself."""
    if about.parent is None:
        return None
    parent = await said_of(store, about.parent)
    if about.base and (base := await said_of(store, about.base)).digest != (await beneath(store, parent)).digest:
        return base.reference
    return parent.reference


async def said_of(store: Store, parent: str) -> Version:
    try:
        return await versions.find(store, Reference.of(parent))
    except ValueError as error:
        raise BadRequest(f"the parent {error}") from error


def described(files: Mapping[str, Taken], folder: Path, about: About, parent: str | None, by: str) -> Version:
    """The version as it will be written, but for its number."""
    manifest = Manifest({path: file.file for path, file in files.items()})
    found = told(files, about.kind)
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


def keep(artifacts: Artifacts, files: Mapping[str, Taken]) -> None:
    """Raises BadRequest if one is not what it was when it was read."""
    for file in files.values():
        with opened(file.place) as reading:
            artifacts.put(reading, file.file)
