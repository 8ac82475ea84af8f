"""A training run's folder, as a version is made of it: the model, and what its recipe and metrics say.

recipe.yaml     resolved, with the SHA-256 of each file of data under `digests`, its own or those of `resolved`
metrics.jsonl   JSON objects with `step`
model/          there once the run has ended
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from penstock.errors import BadRequest
from penstock.references import is_reference
from registry.adding import About
from registry.directory import parsed, text
from registry.manifest import SHA256

RECIPE, METRICS, MODEL, STATE = "recipe.yaml", "metrics.jsonl", "model", "mlflow.json"
NOT_RESULTS = frozenset({"step", "tokens", "lr", "grad_norm", "layer_loss"})


def is_run(folder: Path) -> bool:
    """And no model itself, whatever lies beside it."""
    models = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    return not models and (folder / RECIPE).is_file() and (folder / METRICS).is_file()


def of_run(folder: Path, about: About) -> tuple[Path, About]:
    """The model's folder, and what is said of it; what `about` says itself stands above. Raises BadRequest."""
    model = folder / MODEL
    if not model.is_dir():
        raise BadRequest(f"{folder} is a run that has not ended: go on with it by --resume, then add it")
    said = about.recipe or text((folder / RECIPE).resolve())
    recipe = recipe_of(folder)
    start, base = begun_from(recipe)
    return model, replace(
        about,
        recipe=said,
        parent=about.parent or start or base,
        base=base if start and not about.parent else None,
        data={Path(path).name: digest for path, digest in digests_of(recipe).items()} | dict(about.data),
        metrics=last_metrics(folder) | dict(about.metrics),
    )


def recipe_of(folder: Path) -> dict[str, Any]:
    try:
        said = yaml.safe_load(text((folder / RECIPE).resolve()))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadRequest(f"{folder / RECIPE} is no YAML: {error}") from error
    if not isinstance(said, dict):
        raise BadRequest(f"{folder / RECIPE} is no recipe")
    return said


def digests_of(recipe: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 by path, wherever the script has put them."""
    found: dict[str, str] = {}
    for place in (recipe, recipe.get("resolved")):
        digests = place.get("digests") if isinstance(place, Mapping) else None
        if isinstance(digests, Mapping):
            found |= {str(path): str(one) for path, one in digests.items() if SHA256.fullmatch(str(one))}
    return found


def begun_from(recipe: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The adapter and the whole model that it was begun from, where these are registered versions: by number where the
    script has resolved an alias."""
    adapter, resolved = recipe.get("adapter"), recipe.get("resolved")
    found = resolved if isinstance(resolved, Mapping) else {}

    def version(name: str, said: object) -> str | None:
        if not (isinstance(said, str) and is_reference(said)):
            return None
        return found[name] if isinstance(found.get(name), str) else said

    start = adapter.get("start") if isinstance(adapter, Mapping) else None
    return version("start", start), version("base", recipe.get("base") or recipe.get("model"))


def last_metrics(folder: Path) -> dict[str, float]:
    """The last number of each name. Raises BadRequest."""
    found: dict[str, float] = {}
    for number, line in enumerate(text((folder / METRICS).resolve()).splitlines(), 1):
        for name, value in parsed(f"{folder / METRICS}, line {number}", line).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                found[name] = float(value)
    return {name: value for name, value in found.items() if name not in NOT_RESULTS}


def note_version(folder: Path, reference: str) -> str | None:
    """Tags the run that was logged to MLflow, where that is configured now; why that failed, if it did."""
    try:
        state = json.loads((folder / STATE).read_bytes())
        uri, run = str(state["uri"]), str(state["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    from registry.mlflow import Away, MLflow

    try:
        server = MLflow.configured()
    except Away:
        return None
    if server is None or server.uri != uri:
        return None
    try:
        server.log(run, tags={"penstock.version": reference})
    except Away as away:
        return str(away)
    finally:
        server.close()
    return None
