"""How a version is spoken to, beside the one that it was made from: chat template, tokenizer, end of a turn.

All of it is told from files. A fine-tuned model that answers worse when it is served has mostly one of the three
changed between training and serving.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from evals.candidates import Candidate, said
from evals.report import Finding, failed, passed, skipped
from penstock.gates import Change

CHANGED = "the gate says that it was changed on purpose"


def likeness(
    candidate: Candidate, changed: Collection[Change], incumbent: Candidate | None = None
) -> Iterator[Finding]:
    """Chat template, tokenizer, ends of a turn, in this order. What an alias points to now stands in for a parent that
    is not there."""
    if candidate.parent is None:
        yield from without_a_parent(candidate, changed, incumbent)
        return
    version, parent, base = candidate.version, candidate.parent, candidate.base
    for check, mine, its in (
        ("template", version.template, parent.template or base.template),
        ("tokenizer", version.tokenizer, parent.tokenizer or base.tokenizer),
    ):
        if mine is None and candidate.is_adapter:
            yield passed(check, f"it brings none, so {parent.reference}'s is used")
        elif mine == its:
            yield passed(check, f"as {parent.reference}'s")
        elif check in changed:
            yield passed(check, CHANGED)
        else:
            yield failed(
                check,
                f"{digest(mine)} is not {parent.reference}'s, {digest(its)}: train and serve with the same, "
                f"or say `changed: [{check}]` in the gate",
            )
    yield same_ends(candidate, changed)


def without_a_parent(
    candidate: Candidate, changed: Collection[Change], incumbent: Candidate | None
) -> Iterator[Finding]:
    if incumbent is None or incumbent.is_adapter:
        for check in ("template", "tokenizer", "end"):
            yield skipped(check, f"{candidate.name} has no parent to be compared with", required=False)
        return
    version, other = candidate.version, incumbent.version
    pairs: tuple[tuple[Change, object, object], ...] = (
        ("template", version.template, other.template),
        ("tokenizer", version.tokenizer, other.tokenizer),
        ("end", ends(candidate.folder), ends(incumbent.folder)),
    )
    for check, mine, its in pairs:
        if mine == its:
            yield passed(check, f"as {incumbent.name}'s, which it would follow")
        elif check in changed:
            yield passed(check, CHANGED)
        else:
            yield failed(
                check,
                f"is not {incumbent.name}'s, which it would follow, and it has no parent: serve with the same, or say "
                f"`changed: [{check}]` in the gate",
            )


def same_ends(candidate: Candidate, changed: Collection[Change]) -> Finding:
    assert candidate.parent is not None
    assert candidate.parent_folder is not None
    mine, its = ends(candidate.folder), ends(candidate.parent_folder)
    if candidate.is_adapter and not mine:
        return passed("end", f"it says none, so {candidate.parent.reference}'s are used")
    differing = sorted(name for name in mine.keys() & its.keys() if mine[name] != its[name])
    if not candidate.is_adapter:
        differing = sorted(name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name))
    if not differing:
        return passed("end", f"answers end as {candidate.parent.reference}'s")
    if "end" in changed:
        return passed("end", CHANGED)
    pairs = "; ".join(f"{name} is {mine.get(name)!r}, not {its.get(name)!r}" for name in differing)
    return failed(
        "end",
        f"answers do not end as {candidate.parent.reference}'s: {pairs}; an engine that waits for another end goes on "
        "talking. Copy the parent's, or say `changed: [end]` in the gate",
    )


def ends(folder: Path) -> dict[str, object]:
    """What each file of a folder says of the end of an answer: {"generation_config.json": [2]}."""
    found: dict[str, object] = {}
    for name in ("config.json", "generation_config.json"):
        if (token := said(folder, name).get("eos_token_id")) is not None:
            found[name] = sorted(token) if isinstance(token, list) else [token]
    token = said(folder, "tokenizer_config.json").get("eos_token")
    if token is not None:
        found["tokenizer_config.json"] = token["content"] if isinstance(token, dict) and "content" in token else token
    return found


def digest(value: str | None) -> str:
    return value[:12] if value else "none"
