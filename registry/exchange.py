"""Versions out of the registry and into it, in Hugging Face's layout."""

import asyncio
import os
import re
import time
from dataclasses import replace
from pathlib import Path

from penstock.errors import BadRequest, NotFound, StateUnavailable
from penstock.home import home
from penstock.references import Reference
from penstock.store import Store
from registry import card
from registry.adding import About, add
from registry.artifacts import Artifacts
from registry.directory import CARD, UNSAFE, text
from registry.drafts import draft_folder, swept
from registry.lineage import beneath
from registry.local_copy import write
from registry.versions import Version, find

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
REMEDY = "without a network, copy the model's folder here and import that"


async def export(
    store: Store, artifacts: Artifacts, reference: Reference, folder: Path, base_model: str | None = None
) -> Version:
    """The version's files, which may be changed there, and its model card; complete, or not there at all.

    `base_model` is the id that the card has for the parent. Raises BadRequest where something is in the way.
    """
    version = await find(store, reference)
    base = base_model or await base_of(store, version)
    try:
        await asyncio.to_thread(write_export, artifacts, version, folder, base)
    except OSError as error:
        raise BadRequest(f"{folder} cannot be written: {error.strerror or error}") from error
    return version


async def base_of(store: Store, version: Version) -> str | None:
    """Where the parent, of an adapter the whole model beneath it, was imported from, as the world knows it; else its
    name here. Of a version without one, its own card may tell."""
    if version.parent is None:
        return None
    parent = await (beneath(store, version) if version.kind == "adapter" else find(store, Reference.of(version.parent)))
    return parent.origin.partition("@")[0] if parent.origin else parent.reference


def write_export(artifacts: Artifacts, version: Version, folder: Path, base: str | None) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadRequest(f"{folder} is there already and not an empty directory: name another")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(folder.parent) as draft:
        write(artifacts, version.files, draft, link=False)
        (draft / CARD).write_text(card.rendered(version, base), encoding="utf-8")
        draft.chmod(0o755)
        os.rename(draft, folder)  # over an empty directory, or none


async def bring_in(
    store: Store, artifacts: Artifacts, source: str, about: About, by: str, revision: str | None = None
) -> Version:
    """A directory in Hugging Face's layout, or the id of a model there. What its card says is taken over unless `about`
    says otherwise. Raises BadRequest, NotFound, StateUnavailable (no network)."""
    if folder := directory(source):
        return await add(store, artifacts, folder, with_card(folder, about), by)
    await asyncio.to_thread(swept, home(), time.time())
    with draft_folder(home()) as draft:
        commit = await asyncio.to_thread(download, source, draft, revision, allow_unsafe=about.allow_unsafe)
        return await add(store, artifacts, draft, with_card(draft, replace(about, origin=f"{source}@{commit}")), by)


def directory(source: str) -> Path | None:
    """None for an id of the hub's. Raises BadRequest for what is neither."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(source):
        raise BadRequest(f"{source!r} is neither a directory nor a Hugging Face id such as Qwen/Qwen2.5-0.5B-Instruct")
    return None


def with_card(folder: Path, about: About) -> About:
    if (folder / CARD).is_symlink() or not (folder / CARD).is_file():
        return about
    said = text(folder / CARD)
    recipe, data = card.recipe_of(said)
    return replace(
        about,
        metrics=card.metrics_of(said) | dict(about.metrics),
        recipe=about.recipe or recipe,
        data=about.data or data,
    )


def download(model: str, folder: Path, revision: str | None, *, allow_unsafe: bool) -> str:
    """Into `folder`, without what would be refused; which commit it was."""
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise BadRequest(f"{model}: a Hugging Face id needs huggingface_hub: pip install huggingface_hub") from error
    left_out = [] if allow_unsafe else [f"*{suffix}" for suffix in UNSAFE]
    try:
        commit = HfApi().model_info(model, revision=revision).sha or revision or "main"
        snapshot_download(model, revision=commit, local_dir=folder, ignore_patterns=left_out)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at {revision}" if revision else ""
        remedy = "or takes a token: set HF_TOKEN"
        raise NotFound(f"{model}{at}: the hub has no such model, {remedy}") from error
    except (HfHubHTTPError, OSError) as error:
        raise StateUnavailable(f"{model} cannot be fetched from the hub ({first_line(error)}): {REMEDY}") from error
    except Exception as error:  # the hub's client lets its HTTP library's errors through, and which that is changes
        if not type(error).__module__.partition(".")[0].startswith("httpx"):  # its own errors of connections
            raise
        raise StateUnavailable(f"{model} cannot be fetched from the hub ({first_line(error)}): {REMEDY}") from error
    return commit


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
