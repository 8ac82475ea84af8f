"""Aliases move by compare-and-swap: who is late is told, and every move is kept."""

import asyncio
import json

import pytest

from penstock import audit
from penstock.audit import NOTHING
from penstock.errors import Conflict, NotFound
from penstock.references import Reference
from penstock.store import Store
from registry.adding import About, add
from registry.aliases import Move, all_aliases, history, move, news
from registry.artifacts import Artifacts
from tests.registry.conftest import MakeModel

pytestmark = pytest.mark.anyio


@pytest.fixture
async def three(store: Store, folder: Artifacts, make_model: MakeModel) -> Store:
    """A store with a@1, a@2, a@3."""
    for seed in range(3):
        await add(store, folder, make_model(seed), About("a"), "me")
    return store


def a(number: int | str) -> Reference:
    return Reference("a", number)


async def test_every_move_is_kept_with_who_when_from_to_and_the_gates_report(three: Store) -> None:
    await move(three, "production", a(1), None, "me")
    await move(three, "production", a(2), 1, "you", report={"passed": True})
    await move(three, "best", a("production"), None, "me")
    moves = await history(three, "a")
    said = [(move.alias, move.from_version, move.to_version, move.by, move.report) for move in moves]
    assert said == [
        ("production", None, 1, "me", None),
        ("production", 1, 2, "you", {"passed": True}),
        ("best", None, 2, "me", None),
    ]
    assert moves[0].at <= moves[1].at <= moves[2].at
    assert [(alias.alias, alias.version) for alias in await all_aliases(three)] == [("best", 2), ("production", 2)]
    logged = [entry for entry in await audit.last(three, 10) if entry.action == "alias.moved"]
    assert [entry.subject for entry in logged] == ["a@production", "a@production", "a@best"]
    assert json.loads(logged[1].details) == {"from": 1, "to": 2, "report": {"passed": True}}
    assert (await audit.verify(three)).broken is None


@pytest.mark.parametrize("expected", [None, 1, 3])
async def test_who_expects_something_else_changes_nothing(three: Store, expected: int | None) -> None:
    await move(three, "production", a(2), None, "me")
    before = await three.number("aliases"), (await audit.verify(three)).entries
    with pytest.raises(Conflict, match=r"a@production points to version 2, and not, as expected, (absent|to version)"):
        await move(three, "production", a(3), expected, "you")
    assert (await all_aliases(three))[0].version == 2
    assert (await three.number("aliases"), (await audit.verify(three)).entries) == before


async def test_an_alias_that_is_not_there_is_not_where_it_was_expected(three: Store) -> None:
    with pytest.raises(Conflict, match="is not there, and not, as expected, to version 1"):
        await move(three, "production", a(2), 1, "me")


async def test_of_many_that_move_at_once_one_wins_and_the_others_are_told(three: Store) -> None:
    await move(three, "production", a(1), None, "me")
    moved = await asyncio.gather(
        *(move(three, "production", a(2 + number % 2), 1, f"{number}") for number in range(8)), return_exceptions=True
    )
    won = [one for one in moved if isinstance(one, Move)]
    assert len(won) == 1
    assert sum(isinstance(one, Conflict) for one in moved) == 7
    (alias,) = await all_aliases(three)
    assert alias.version == won[0].to_version
    assert [each.by for each in await history(three, "a")] == ["me", won[0].by]


async def test_a_move_to_where_it_points_is_none(three: Store) -> None:
    await move(three, "production", a(1), None, "me")
    assert await move(three, "production", a(1), 1, "me") is None
    assert await three.number("aliases") == 1
    assert len(await history(three, "a")) == 1


async def test_followers_find_what_has_moved_since(three: Store) -> None:
    await move(three, "production", a(1), None, "me")
    first = await news(three, NOTHING)
    assert [(alias.alias, alias.version) for alias in first.aliases] == [("production", 1)]
    assert (await news(three, first.seen)).aliases == []
    await move(three, "best", a(3), None, "me")
    await move(three, "production", a(2), 1, "me")
    then = await news(three, first.seen)
    assert [(alias.alias, alias.version) for alias in then.aliases] == [("best", 3), ("production", 2)]
    assert then.number == then.aliases[-1].change == await three.number("aliases")
    assert not then.restored


async def test_an_alias_leads_to_a_version_that_is_there(three: Store) -> None:
    with pytest.raises(NotFound, match="has no version 4: its last is 3"):
        await move(three, "production", a(4), None, "me")
    for alias in ("7", ".x", "a b", ""):
        with pytest.raises(ValueError, match="an alias"):
            await move(three, alias, a(1), None, "me")
    assert await all_aliases(three) == []
