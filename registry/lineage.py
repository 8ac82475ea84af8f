"""What a version was made from, and what was made from it, as a tree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from penstock.references import Reference
from penstock.store import Store
from registry.versions import Version, find


@dataclass(frozen=True, slots=True)
class Node:
    version: Version
    children: Sequence["Node"] = field(default_factory=list)


def lineage(versions: Sequence[Version], shown: Version) -> Node:
    """From the oldest ancestor of `shown`, with all its descendants."""
    by_reference = {version.reference: version for version in versions}
    made_from: dict[str, list[Version]] = {}
    for version in versions:
        if version.parent:
            made_from.setdefault(version.parent, []).append(version)
    root = shown
    while root.parent in by_reference:  # a parent is there before its children, so this ends
        root = by_reference[root.parent]
    return branch(root, made_from)


def branch(version: Version, made_from: Mapping[str, Sequence[Version]]) -> Node:
    return Node(version, [branch(child, made_from) for child in made_from.get(version.reference, ())])


async def beneath(store: Store, version: Version) -> Version:
    """The whole model that an adapter is put on, beneath those that it was begun from; the last of these if that has no
    parent. Raises NotFound."""
    while version.kind == "adapter" and version.parent:
        version = await find(store, Reference.of(version.parent))
    return version
