"""`penstock canary` as a person types it."""

import asyncio
import json
import math
from random import Random

import pytest
from typer.testing import CliRunner, Result

from penstock.cli import app
from penstock.references import Reference
from penstock.store import opened
from registry.adding import About, add
from registry.aliases import move
from registry.artifacts import Artifacts
from registry.canary_figures import Both, write
from tests.penstock.test_cli import penstock
from tests.registry.conftest import MakeModel


def done(*words: str) -> str:
    """What the command prints on standard output."""
    shown = typed(*words)
    assert shown.exit_code == 0, shown.stderr
    return shown.stdout


def typed(*words: str) -> Result:
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"})


@pytest.fixture
def registered(folder: Artifacts, make_model: MakeModel) -> None:
    """demo@1 to demo@3, and demo@production at 1."""

    async def made() -> None:
        async with opened(None) as store:
            for seed in range(3):
                await add(store, folder, make_model(seed), About("demo"), "me")
            await move(store, "production", Reference("demo", 1), None, "me")

    asyncio.run(made())


def counted(canary: int, errors: int) -> None:
    """A gateway has seen 300 requests of each arm, of which the canary's have failed so often."""
    both, dice = Both(), Random(1)
    for arm in (both.stable, both.canary):
        arm.requests = 300
        for _ in range(300):
            for logs in (arm.first, arm.whole, arm.length):
                logs.note(math.exp(dice.gauss(1, 0.5)))
    both.canary.errors = errors

    async def written() -> None:
        async with opened(None) as store:
            await write(store, "a gateway", {canary: both})

    asyncio.run(written())


@pytest.mark.usefixtures("registered")
def test_a_canary_is_started_shown_side_by_side_and_stopped() -> None:
    said = done("canary", "start", "demo@2", "production", "--percent", "5", "--rule", "least_s=0")
    assert "demo@production: 5 % of the requests go to version 2, the others to version 1" in said
    listed = json.loads(done("canary", "list", "--json"))
    assert [(each["version"], each["percent"], each["rules"]["least_s"]) for each in listed] == [(2, 5.0, 0)]
    counted(listed[0]["id"], errors=0)
    shown = done("canary", "show", "demo@production")
    for words in ("running", "verdict so far: on", "version 2 (canary)", "requests", "first token, seconds", "good"):
        assert words in shown
    counted(listed[0]["id"], errors=60)
    assert json.loads(done("canary", "show", "demo@production", "--json"))["now"]["canary"] == "back"
    assert "all requests go to version 1" in done("canary", "stop", "demo@production")
    assert json.loads(done("canary", "list", "--json")) == []
    assert "stopped, by cli" in done("canary", "list", "--all")
    shown = done("canary", "show", "demo@production")
    assert "errors: 0 before, 0.2 in the canary" in shown
    late = typed("canary", "stop", "demo@production")
    assert (late.exit_code, late.stderr) == (1, "penstock: demo@production has no canary that runs\n")


@pytest.mark.usefixtures("registered")
def test_a_canary_is_promoted_by_hand_and_ended_by_a_tag_which_says_so() -> None:
    done("canary", "start", "demo@2", "production")
    assert "from version 1, to version 2" in done("canary", "promote", "demo@production")
    done("canary", "start", "demo@3", "production")
    said = done("registry", "tag", "demo@1", "production")
    assert "the canary of demo@production has ended: version 3 gets none of its requests any more" in said
    outcomes = [each["outcome"] for each in json.loads(done("canary", "list", "--all", "--json"))]
    assert outcomes == ["on", "overtaken"]
    moves = json.loads(done("registry", "show", "demo@1", "--json"))["moves"]
    assert moves[1]["report"]["canary"] == "wait"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["start", "demo@2", "production", "--rule", "least"], "--rule least: write NAME=NUMBER"),
        (["start", "demo@2", "production", "--rule", "patience=3"], "there is no rule 'patience'"),
        (["start", "demo@2", "production"], "no model is named 'demo' in the registry"),
        (["start", "demo@2", "7"], "an alias is not a number"),
        (["show", "demo@2"], "a canary is an alias's, so write NAME@ALIAS"),
        (["stop", "demo@production"], "demo@production has had no canary"),
    ],
)
def test_a_mistake_ends_in_its_message(words: list[str], message: str) -> None:
    shown = typed("canary", *words)
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert message in shown.stderr
    assert isinstance(shown.exception, SystemExit)


def test_the_command_is_there_for_a_person(registered: None) -> None:
    shown = penstock("canary", "start", "demo@2", "production", "--json")
    assert json.loads(shown.stdout)["percent"] == 10.0, shown.stderr
