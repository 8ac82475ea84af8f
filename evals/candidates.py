"""A version that is to be asked: its files here, and for an adapter the whole model under it."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import BadRequest
from penstock.references import Reference
from penstock.store import Store
from registry.artifacts import Artifacts
from registry.lineage import beneath
from registry.local_copy import local_copy
from registry.resolve import resolve
from registry.versions import Version, find

DESCRIBING = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""Files that say how a model is spoken to; small beside its weights."""


@dataclass(frozen=True)
class Candidate:
    """`base` is the version itself where it is whole. `parent_folder` has the describing files of the parent alone."""

    version: Version
    folder: Path
    base: Version
    base_folder: Path
    parent: Version | None = None
    parent_folder: Path | None = None

    @property
    def name(self) -> str:
        return self.version.reference

    @property
    def is_adapter(self) -> bool:
        return self.version.kind == "adapter"

    @property
    def digests(self) -> tuple[str, str]:
        """What answers, whatever it is called."""
        return self.base.digest, self.version.digest

    @property
    def spoken_to_by(self) -> Path:
        """The folder whose template and tokenizer it was trained with: its own where it brings them."""
        own = self.version.tokenizer is not None and self.version.template is not None
        return self.folder if own else self.base_folder


async def candidate(store: Store, artifacts: Artifacts, reference: Reference, scratch: Path) -> Candidate:
    """`scratch` takes what is read of the parent. Raises NotFound, Damaged; BadRequest for what cannot be asked."""
    version, folder = await resolve(store, artifacts, reference)
    if version.kind == "reward":
        raise BadRequest(f"{version.reference} is a reward model, which answers nobody: there is nothing to compare")
    base, base_folder = await beneath(store, version), folder
    if base.kind == "adapter":
        raise BadRequest(
            f"{base.reference} is an adapter without a parent, so nobody knows what it is to be put on: "
            "add it again with --parent NAME@VERSION, the model that it was trained on"
        )
    if base is not version:
        base_folder = await asyncio.to_thread(local_copy, artifacts, base.files)
    parent = await find(store, Reference.of(version.parent)) if version.parent else None
    described = None
    if parent is not None:
        described = scratch / parent.reference
        await asyncio.to_thread(describing_files, artifacts, parent, described)
    return Candidate(version, folder, base, base_folder, parent, described)


def describing_files(artifacts: Artifacts, version: Version, folder: Path) -> None:
    if folder.exists():
        return
    folder.mkdir(parents=True)
    for name in DESCRIBING:
        if file := version.files.files.get(name):
            artifacts.fetch(file, folder / name)


def said(folder: Path, name: str) -> Mapping[str, Any]:
    """A JSON object of a folder, empty where the file is not there. Raises BadRequest."""
    file = folder / name
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise BadRequest(f"{name} of {folder.name[:12]} is no JSON: {error}") from error
    return value if isinstance(value, dict) else {}
