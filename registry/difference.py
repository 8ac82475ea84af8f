"""What differs between two versions."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from registry.versions import Version

Pair = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """`fields` (kind, parent, template, tokenizer ...), `metrics` and `data` have what each side says, None for
    nothing; `recipe` is a unified diff."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    fields: dict[str, Pair]
    metrics: dict[str, Pair]
    data: dict[str, Pair]
    recipe: list[str]

    @property
    def is_empty(self) -> bool:
        return not any(asdict(self).values())


FIELDS = ("digest", "kind", "parent", "template", "tokenizer")


def difference(old: Version, new: Version) -> Difference:
    before, after = old.files.files, new.files.files
    was, now = ((version.recipe or "").splitlines() for version in (old, new))
    return Difference(
        added=sorted(after.keys() - before.keys()),
        removed=sorted(before.keys() - after.keys()),
        changed=sorted(path for path in before.keys() & after.keys() if before[path] != after[path]),
        fields=pairs({name: getattr(old, name) for name in FIELDS}, {name: getattr(new, name) for name in FIELDS}),
        metrics=pairs(old.metrics, new.metrics),
        data=pairs(old.data, new.data),
        recipe=list(difflib.unified_diff(was, now, old.reference, new.reference, lineterm="")),
    )


def pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Pair]:
    names = [*old, *(name for name in new if name not in old)]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}
