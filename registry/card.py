"""A model card as Hugging Face reads it: a README.md whose YAML header says what the model was made from."""

import math
from collections.abc import Mapping
from typing import Any

import yaml

from registry.kinds import Kind
from registry.manifest import SHA256
from registry.versions import Version

FENCE = "---\n"
RELATIONS: Mapping[Kind, str] = {
    "full": "finetune",
    "reward": "finetune",
    "adapter": "adapter",
    "quantized": "quantized",
}
TASKS: Mapping[Kind, str] = {"reward": "text-classification"}
OURS = "penstock"


def split(card: str) -> tuple[dict[str, Any], str]:
    """Its header and the rest; an empty header where there is none that can be read."""
    card = card.removeprefix("\ufeff").replace("\r\n", "\n")
    if not card.startswith(FENCE):
        return {}, card
    head, fence, body = f"{card}\n".removeprefix(FENCE).partition(f"\n{FENCE}")
    try:
        header = yaml.safe_load(head) if fence else None
    except (yaml.YAMLError, ValueError, RecursionError):  # 2024-99-99 is a ValueError
        header = None
    return (header, body.removesuffix("\n")) if isinstance(header, dict) else ({}, card)


def rendered(version: Version, base: str | None) -> str:
    """The version's own card with a header that is true of it; `base`: by which id its parent is known."""
    header, body = split(version.card or "")
    header |= described(version, base)
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=100)
    return f"{FENCE}{text}{FENCE}{body or f'# {version.name}' + chr(10)}"


def described(version: Version, base: str | None) -> dict[str, Any]:
    header: dict[str, Any] = {}
    if base:
        header |= {"base_model": base, "base_model_relation": RELATIONS[version.kind]}
    if version.kind == "adapter":
        header["library_name"] = "peft"
    if version.metrics:
        header["model-index"] = [{"name": version.name, "results": [results(version)]}]
    said = {
        "version": version.reference,
        "digest": version.digest,
        "kind": version.kind,
        "parent": version.parent,
        "chat_template": version.template,
        "tokenizer": version.tokenizer,
        "data": dict(version.data),
        "recipe": version.recipe,
    }
    return header | {OURS: {name: value for name, value in said.items() if value}}


def results(version: Version) -> dict[str, Any]:
    return {
        "task": {"type": TASKS.get(version.kind, "text-generation")},
        "dataset": {"name": "as registered", "type": OURS},
        "metrics": [{"type": name, "name": name, "value": value} for name, value in sorted(version.metrics.items())],
    }


def metrics_of(card: str) -> dict[str, float]:
    """The numbers of its model-index, whatever they were measured on; the first of each name."""
    found: dict[str, float] = {}
    for metric in every_metric(split(card)[0].get("model-index")):
        name, value = str(metric.get("name") or metric.get("type"))[:128], metric.get("value")
        if isinstance(value, int | float) and not isinstance(value, bool) and name.isprintable() and is_finite(value):
            found.setdefault(name, float(value))
    return found


def is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond any float
        return False


def every_metric(index: Any) -> list[dict[str, Any]]:
    results = [result for model in objects(index) for result in objects(model.get("results"))]
    return [metric for result in results for metric in objects(result.get("metrics"))]


def objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def recipe_of(card: str) -> tuple[str | None, dict[str, str]]:
    """Recipe and data digests of a card that was written here."""
    ours = split(card)[0].get(OURS)
    said = ours if isinstance(ours, dict) else {}
    recipe, data = said.get("recipe"), said.get("data")
    found = {str(name): str(value) for name, value in data.items()} if isinstance(data, dict) else {}
    digests = {name: value for name, value in found.items() if name.isprintable() and SHA256.fullmatch(value)}
    return (recipe if isinstance(recipe, str) else None), digests
