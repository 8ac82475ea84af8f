"""Back to the version before, by the history of the alias."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import audit
from penstock.errors import BadRequest, NotFound
from penstock.references import Reference
from penstock.store import Store
from registry import canaries
from registry.adding import About, add
from registry.aliases import Move, all_aliases, history, move
from registry.artifacts import Artifacts
from registry.canaries import Canary
from registry.rollback import MARK, before, roll_back
from tests.registry.conftest import MakeModel

pytestmark = pytest.mark.anyio


@pytest.fixture
async def live(store: Store, folder: Artifacts, make_model: MakeModel) -> Store:
    """a@production has been at 1, then 2, then 4; there is a 3, to which it never pointed."""
    for seed in range(4):
        await add(store, folder, make_model(seed), About("a"), "me")
    for number, expected in ((1, None), (2, 1), (4, 2)):
        await move(store, "production", Reference("a", number), expected, "me", {"passed": True})
    return store


async def now(store: Store) -> int:
    return next(each.version for each in await all_aliases(store, "a") if each.alias == "production")


async def test_each_step_goes_back_by_the_history_until_there_is_nothing(live: Store) -> None:
    for version in (2, 1):
        moved = await roll_back(live, "a", "production", "me", reason="it was rude")
        assert isinstance(moved, Move)
        assert moved.to_version == await now(live) == version
    with pytest.raises(BadRequest, match="nothing before version 1"):
        await roll_back(live, "a", "production", "me")
    last = (await history(live, "a"))[-1]
    assert last.report == {MARK: {"from": 2, "reason": "it was rude"}}
    entry = next(each for each in await audit.last(live, 10) if each.action == "alias.moved" and "rude" in each.details)
    assert json.loads(entry.details)["to"] == 2
    assert (await audit.verify(live)).broken is None


async def test_what_was_rolled_back_is_not_returned_to(live: Store) -> None:
    await roll_back(live, "a", "production", "me")
    await move(live, "production", Reference("a", 3), 2, "me")
    assert (await roll_back(live, "a", "production", "me")).to_version == 2  # type: ignore[union-attr]


async def test_a_version_that_was_live_can_be_named_and_no_other(live: Store) -> None:
    with pytest.raises(BadRequest, match="never pointed to version 3"):
        await roll_back(live, "a", "production", "me", to=3)
    with pytest.raises(BadRequest, match="points to version 4 already"):
        await roll_back(live, "a", "production", "me", to=4)
    assert await now(live) == 4
    await roll_back(live, "a", "production", "me", to=1)
    assert await now(live) == 1
    with pytest.raises(BadRequest, match="nothing before"):
        await roll_back(live, "a", "production", "me")


async def test_an_alias_that_is_not_there_is_told(live: Store) -> None:
    with pytest.raises(NotFound, match="a@staging is not there"):
        await roll_back(live, "a", "staging", "me")


async def test_a_canary_is_the_last_step(live: Store) -> None:
    started = await canaries.start(live, "production", Reference("a", 3), 10, "me")
    ended = await roll_back(live, "a", "production", "you")
    assert isinstance(ended, Canary)
    assert (ended.id, ended.outcome, ended.ended_by) == (started.id, "stopped", "you")
    assert await now(live) == 4
    assert (await roll_back(live, "a", "production", "you")).to_version == 2  # type: ignore[union-attr]


async def test_a_named_version_ends_a_canary_too(live: Store) -> None:
    await canaries.start(live, "production", Reference("a", 3), 10, "me")
    await roll_back(live, "a", "production", "you", to=1)
    assert await now(live) == 1
    assert await canaries.all_canaries(live, "a") == []


def moves(steps: list[int | None]) -> list[Move]:
    """None is a rollback by one step, where there is one to go back to."""
    made: list[Move] = []
    for step in steps:
        to = before(made) if step is None else step
        if to is not None and (not made or made[-1].to_version != to):
            report: dict[str, object] | None = {MARK: {}} if step is None else None
            made.append(Move(len(made), "a", "p", made[-1].to_version if made else None, to, 0.0, "me", report))
    return made


@given(st.lists(st.one_of(st.none(), st.integers(1, 4)), max_size=20))
def test_promotions_and_rollbacks_are_a_stack(steps: list[int | None]) -> None:
    stack: list[int] = []
    for step in steps:
        if step is not None and stack[-1:] != [step]:
            stack.append(step)
        elif step is None and len(stack) > 1:
            stack.pop()
    assert before(moves(steps)) == (stack[-2] if len(stack) > 1 else None)
