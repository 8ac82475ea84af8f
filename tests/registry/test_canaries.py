"""Canaries start and end by one word: who is late is told, what moves the alias ends them, and all of it is kept."""

import asyncio
import json
import math

import pytest

from penstock import audit
from penstock.errors import BadRequest, Conflict, NotFound
from penstock.references import Reference
from penstock.store import Store
from registry.adding import About, add
from registry.aliases import Move, all_aliases, history, move
from registry.artifacts import Artifacts
from registry.canaries import Canary, Rules, all_canaries, end, last, since, start
from registry.canary_figures import Both, Figures, read, write
from tests.registry.conftest import MakeModel

pytestmark = pytest.mark.anyio


@pytest.fixture
async def three(store: Store, folder: Artifacts, make_model: MakeModel) -> Store:
    """A store with a@1, a@2, a@3, and a@production at 1."""
    for seed in range(3):
        await add(store, folder, make_model(seed), About("a"), "me")
    await move(store, "production", a(1), None, "me")
    return store


def a(number: int | str) -> Reference:
    return Reference("a", number)


async def logged(store: Store) -> list[tuple[str, str, dict[str, object]]]:
    entries = await audit.last(store, 20)
    said = [(entry.action, entry.actor, json.loads(entry.details)) for entry in entries]
    return [entry for entry in said if entry[0] in ("canary.started", "canary.ended", "alias.moved")][1:]


async def test_a_canary_runs_beside_its_alias_and_ends_with_its_verdict(three: Store) -> None:
    seen = await three.number("aliases")
    canary = await start(three, "production", a(2), 10, "me", Rules(least_requests=50), {"passed": True})
    assert (canary.from_version, canary.version, canary.percent, canary.runs) == (1, 2, 10.0, True)
    assert await all_canaries(three) == await since(three, seen) == [canary]
    ended = await end(three, canary.id, "back", "node:1", {"reasons": ["errors"]})
    assert ended
    assert (ended.outcome, ended.ended_by, ended.verdict, ended.runs) == (
        "back",
        "node:1",
        {"reasons": ["errors"]},
        False,
    )
    assert await all_canaries(three) == []
    assert await all_canaries(three, "a", ended=True) == await since(three, canary.change) == [ended]
    assert await last(three, "a", "production") == ended
    assert ended.change == await three.number("aliases")
    assert (await all_aliases(three))[0].version == 1
    (action, actor, details), closing = await logged(three)
    assert (action, actor, details["to"], details["percent"]) == ("canary.started", "me", 2, 10.0)
    assert details["report"] == {"passed": True}
    assert closing == (
        "canary.ended",
        "node:1",
        {"from": 1, "to": 2, "outcome": "back", "report": {"reasons": ["errors"]}},
    )
    assert (await audit.verify(three)).broken is None


@pytest.mark.parametrize("percent", [0, -1, 50.1, 100, math.nan, math.inf])
async def test_a_share_that_cannot_be_is_refused(three: Store, percent: float) -> None:
    with pytest.raises(BadRequest, match="more than 0 and at most 50 percent"):
        await start(three, "production", a(2), percent, "me")


async def test_what_cannot_be_tried_is_refused_and_changes_nothing(
    three: Store, folder: Artifacts, make_model: MakeModel
) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": "a"}
    adapter = make_model(5, **{"config.json": None, "model.safetensors": None, "adapter_config.json": config})
    (adapter / "adapter_model.safetensors").write_bytes((make_model() / "model.safetensors").read_bytes())
    await add(three, folder, adapter, About("a", kind="adapter", parent="a@1"), "me")
    before = await three.number("aliases"), (await audit.verify(three)).entries
    with pytest.raises(NotFound, match="no alias 'produktion', did you mean 'production'"):
        await start(three, "produktion", a(2), 10, "me")
    with pytest.raises(NotFound, match="has no version 9"):
        await start(three, "production", a(9), 10, "me")
    with pytest.raises(Conflict, match="points to version 1 already"):
        await start(three, "production", a(1), 10, "me")
    with pytest.raises(BadRequest, match="a@4 is of the kind adapter, a@1 of full"):
        await start(three, "production", a(4), 10, "me")
    with pytest.raises(Conflict, match="points to version 1, and not, as expected, to version 3"):
        await start(three, "production", a(2), 10, "me", expected=3)
    with pytest.raises(ValueError, match="an alias is not a number"):
        await start(three, "7", a(2), 10, "me")
    assert (await three.number("aliases"), (await audit.verify(three)).entries) == before
    assert await all_canaries(three, ended=True) == []


async def test_one_runs_for_an_alias_at_a_time_and_others_beside_it(three: Store) -> None:
    await move(three, "best", a(1), None, "me")
    started = await asyncio.gather(
        *(start(three, "production", a(2 + number % 2), 10, f"{number}") for number in range(6)), return_exceptions=True
    )
    (canary,) = (one for one in started if isinstance(one, Canary))
    refused = [one for one in started if isinstance(one, Conflict)]
    assert len(refused) == 5
    assert f"a@production has a canary, version {canary.version}: `penstock canary stop`" in refused[0].message
    other = await start(three, "best", a(3), 5, "me")
    await end(three, canary.id, "stopped", "me")
    again = await start(three, "production", a(3), 1, "me")
    assert await all_canaries(three) == [other, again]


async def test_who_ends_it_second_changes_nothing(three: Store) -> None:
    canary = await start(three, "production", a(2), 10, "me")
    ended = await asyncio.gather(*(end(three, canary.id, "back", f"gateway {number}") for number in range(6)))
    (won,) = (one for one in ended if one)
    assert (await last(three, "a", "production")).ended_by == won.ended_by
    assert [action for action, _, _ in await logged(three)] == ["canary.started", "canary.ended"]
    with pytest.raises(NotFound, match="there is no canary 99"):
        await end(three, 99, "stopped", "me")


async def test_going_on_moves_the_alias_and_ends_the_canary_at_once_and_only_once(three: Store) -> None:
    canary = await start(three, "production", a(2), 10, "me")
    verdict = {"reasons": ["good"]}
    moved = await asyncio.gather(
        *(
            move(three, "production", a(2), canary.from_version, f"gateway {number}", verdict, canary=canary.id)
            for number in range(6)
        ),
        return_exceptions=True,
    )
    (won,) = (one for one in moved if isinstance(one, Move))
    assert sum(isinstance(one, Conflict) for one in moved) == 5
    ended = await last(three, "a", "production")
    assert (ended.outcome, ended.ended_by, ended.verdict, ended.change) == ("on", won.by, verdict, won.change)
    assert [each.report for each in await history(three, "a")] == [None, verdict]
    assert [action for action, _, _ in await logged(three)] == ["canary.started", "alias.moved", "canary.ended"]


async def test_a_canary_that_was_stopped_does_not_go_on(three: Store) -> None:
    canary = await start(three, "production", a(2), 10, "me")
    await end(three, canary.id, "stopped", "you")
    before = await three.number("aliases")
    with pytest.raises(Conflict, match="the canary of a@production has ended: stopped, by you"):
        await move(three, "production", a(2), 1, "a gateway", canary=canary.id)
    assert await three.number("aliases") == before
    assert (await all_aliases(three))[0].version == 1


@pytest.mark.parametrize(("to", "outcome"), [(3, "overtaken"), (2, "on")])
async def test_an_alias_that_somebody_moves_ends_its_canary(three: Store, to: int, outcome: str) -> None:
    canary = await start(three, "production", a(2), 10, "me")
    other = await move(three, "best", a(3), None, "you")
    assert other
    assert await all_canaries(three) == [canary]
    moved = await move(three, "production", a(to), 1, "you")
    assert moved
    ended = await last(three, "a", "production")
    assert (ended.outcome, ended.ended_by, ended.change) == (outcome, "you", moved.change)


async def test_figures_of_all_gateways_are_added_up_and_a_repeated_write_counts_once(three: Store) -> None:
    canary = await start(three, "production", a(2), 10, "me")
    empty = await read(three, canary.id)
    assert empty == Both()
    first, second = Both(), Both()
    for both, seconds in ((first, 0.5), (second, 2.0)):
        both.canary.requests, both.canary.errors, both.stable.gone = 5, 1, 2
        both.canary.first.note(seconds)
    for _ in range(2):
        await write(three, "one", {canary.id: first})
        await write(three, "two", {canary.id: second})
    both = await read(three, canary.id)
    assert (both.canary.requests, both.canary.errors, both.stable.gone, both.canary.first.count) == (10, 2, 4, 2)
    assert both.canary.first.typical == pytest.approx(1.0)
    assert both.canary.first.squares == pytest.approx(2 * math.log(2) ** 2)
    first.canary.requests = 7
    await write(three, "one", {canary.id: first})
    assert (await read(three, canary.id)).canary.requests == 12
    await write(three, "three", {})
    assert isinstance(both.stable, Figures)
