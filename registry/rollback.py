"""Back to the version that an alias pointed to before, by its history: by what was, not by the next lower number.

Each rollback takes one step back. One that follows another goes further, and never to the version that was left: what
was rolled back is no place to return to but by a promotion.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.errors import BadRequest, Conflict, NotFound
from penstock.references import Reference
from penstock.store import Store
from registry import canaries
from registry.aliases import Move, all_aliases, history, move
from registry.canaries import Canary

MARK = "rollback"


async def roll_back(
    store: Store, name: str, alias: str, by: str, to: int | None = None, reason: str = ""
) -> Move | Canary:
    """To version `to`, else one step back: a canary that runs is the last step, and is ended alone.

    Raises NotFound for an alias that is not there; BadRequest where there is nothing before, or where it has never
    pointed to `to`; Conflict where somebody was quicker.
    """
    now = {each.alias: each.version for each in await all_aliases(store, name)}.get(alias)
    if now is None:
        raise NotFound(f"{name}@{alias} is not there; `penstock registry list` shows which aliases are")
    if to is None and (canary := await running(store, name, alias)):
        ended = await canaries.end(store, canary.id, "stopped", by, report(now, reason))
        if ended is None:
            raise Conflict(f"the canary of {name}@{alias} has just ended by itself: look at it again")
        return ended
    moves = [each for each in await history(store, name) if each.alias == alias]
    target = before(moves) if to is None else to
    if target is None:
        raise BadRequest(f"{name}@{alias} has pointed to nothing before version {now}: say --to NUMBER, or promote one")
    if target not in {each.to_version for each in moves}:
        raise BadRequest(f"{name}@{alias} has never pointed to version {target}: promote it, which asks the gate")
    if target == now:
        raise BadRequest(f"{name}@{alias} points to version {now} already: nothing was changed")
    moved = await move(store, alias, Reference(name, target), now, by, report(now, reason))
    assert moved is not None
    return moved


async def running(store: Store, name: str, alias: str) -> Canary | None:
    return next((each for each in await canaries.all_canaries(store, name) if each.alias == alias), None)


def report(left: int, reason: str) -> Mapping[str, Any]:
    """What stands in the history in the place of a gate's report."""
    return {MARK: {"from": left} | ({"reason": reason} if reason else {})}


def before(moves: Sequence[Move]) -> int | None:
    """Of one alias, the oldest first. 1, 2, 3 -> 2; 1, 2, 3, rolled back to 2 -> 1; then 4 -> 2."""
    versions: list[int] = []
    for each in moves:
        if each.report and MARK in each.report and each.to_version in versions:
            while versions[-1] != each.to_version:
                versions.pop()
        else:
            versions.append(each.to_version)
    return versions[-2] if len(versions) > 1 else None
