"""Adapters for engines: the base they are made for, and folders NAME@VERSION as vLLM's filesystem resolver reads."""

import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from penstock.errors import BadRequest, NotFound
from penstock.store import Store
from registry.directory import parsed, text
from registry.drafts import DRAFT
from registry.lineage import beneath
from registry.local_copy import Placed
from registry.versions import Version

CONFIG = "adapter_config.json"
REMEDY = "add the adapter again as another version, as PEFT's `save_pretrained` writes it"


async def misfit(store: Store, adapter: Version, base: Version | None) -> str:
    """Why an adapter cannot be served with a base, empty if it can; None: the base is no registered model, and nobody
    here knows what the adapter was made for."""
    if adapter.kind != "adapter":
        return f"{adapter.reference} is no adapter but a {adapter.kind} model: serve it as an engine's model"
    if base is None:
        return ""
    if adapter.parent == base.reference:
        return ""
    try:
        under = await beneath(store, adapter)
    except NotFound:
        under = None
    if under and under.kind == "adapter":
        return (
            f"{under.reference} does not say which model it was made for: add it again with --parent, "
            f"which must be {base.reference} here"
        )
    if under and under.digest == base.digest:
        return ""
    made_for = under.reference if under else adapter.parent
    return f"{adapter.reference} is made for {made_for}, and its engine serves {base.reference}"


def rank_of(placed: Placed) -> int:
    """Its largest. Raises BadRequest for what is no LoRA adapter."""
    said = config_of(placed)
    kind = said.get("peft_type")
    if kind != "LORA":
        raise BadRequest(
            f"{placed.version.reference} is a {kind} adapter, and vLLM serves LoRA alone: merge it instead"
        )
    pattern = said.get("rank_pattern") or {}
    ranks = [said.get("r"), *(pattern.values() if isinstance(pattern, dict) else [pattern])]
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        why = f"{CONFIG} must have a rank `r`, and in `rank_pattern` ranks, that are whole numbers above 0"
        raise BadRequest(f"{placed.version.reference}: {why}; {REMEDY}")
    return int(max(ranks))


def config_of(placed: Placed) -> dict[str, Any]:
    """Raises BadRequest."""
    try:
        return parsed(CONFIG, text(placed.folder / CONFIG))
    except BadRequest as error:
        raise BadRequest(f"{placed.version.reference}: {error.message}; {REMEDY}") from error


def offer(placed: Placed, place: Path, base: str) -> str:
    """Puts an adapter into a directory that engines of `base` read (their model, as they were started with it): whole
    or not at all. Returns the name to ask for it."""
    name = placed.version.reference
    target = place / name
    said = json.dumps(config_of(placed) | {"base_model_name_or_path": base})
    if is_offered(target, said):
        return name
    draft = Path(tempfile.mkdtemp(dir=place, prefix=DRAFT))
    try:
        os.chmod(draft, 0o755)  # an engine elsewhere may be another user
        for file in placed.folder.iterdir():
            if file.is_file() and file.name != CONFIG:
                linked(file, draft / file.name)
        (draft / CONFIG).write_text(said)
        withdraw(place, name)
        with suppress(OSError):  # another gateway was quicker
            os.rename(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    if not is_offered(target, said):
        raise OSError(f"{target} cannot be made")
    return name


def is_offered(target: Path, said: str) -> bool:
    """By the text: NaN, which some write, is equal to nothing."""
    try:
        return (target / CONFIG).read_text() == said
    except (OSError, ValueError):
        return False


def withdraw(place: Path, name: str) -> None:
    """An engine that has loaded it goes on."""
    if (place / name).exists():
        aside = Path(tempfile.mkdtemp(dir=place, prefix=DRAFT))
        with suppress(OSError):
            os.rename(place / name, aside / "old")
        shutil.rmtree(aside, ignore_errors=True)


def linked(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, target)
