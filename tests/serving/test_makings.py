"""The composition that a gateway tells of a served model: what changes it, what does not, and `penstock eval` by it."""

import asyncio
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from evals.runs import Run
from evals.served import Behind, what_is_served
from evals.tasks import Item, Task
from penstock.errors import BadRequest
from penstock.eval_cli import run_of
from penstock.keyring import Keyring, pepper, rights, wanted
from penstock.store import opened
from tests.serving.conftest import run_gateway
from tests.serving.test_reload import following

pytestmark = pytest.mark.anyio

Tree = dict[str, Any]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """`m` asks `judge`, which asks `helper`; `other` is by itself, a plain model."""
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))
    (tmp_path / "examples.jsonl").write_text('{"user": "1+1", "assistant": "2"}\n')
    (tmp_path / "terms.txt").write_text("river\n")
    return {
        "engines": {"e": {"kind": "scripted", "options": {"answers": ["no"]}}},
        "models": {
            "m": {
                "engine": "e",
                "steps": [
                    {"guard": {"name": "named"}},
                    {"self_refine": {"judge": "judge", "rounds": 1}},
                    {"few_shot": {"examples": "examples.jsonl"}},
                ],
                "guards": "listed",
                "budget_tokens": 500,
            },
            "judge": {"engine": "e", "steps": [{"instruct": {"text": "Judge."}}], "guards": "judged"},
            "helper": {"engine": "e", "steps": [{"instruct": {"text": "Help."}}]},
            "other": {"engine": "e"},
        },
        "guards": {
            "named": ["pii"],
            "listed": [{"terms": {"file": "terms.txt"}}],
            "judged": [{"judge": {"model": "helper", "rubric": "Is it kind?"}}],
            "unused": ["secrets"],
        },
    }


async def behind(tree: Tree, folder: Path, model: str = "m", key: str | None = None) -> Behind:
    """As a gateway of its own with this configuration says."""
    async with run_gateway(hot=True, stored=True, files=str(folder), **deepcopy(tree)) as client:
        return await what_is_served(str(client.base_url), model, key)


def changed(tree: Tree, path: str, value: Any) -> Tree:
    """The same but for what stands at models.m.steps.0.guard."""
    tree = deepcopy(tree)
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at: Any = tree
    for part in way:
        at = at[part]
    at[last] = value
    return tree


SEEN: Mapping[str, Any] = {
    "models.m.steps.1.self_refine.rounds": 2,
    "models.m.steps": [{"instruct": {"text": "Be brief."}}],
    "models.m.steps.0.guard.name": "unused",
    "models.m.guards": None,
    "models.m.budget_tokens": 501,
    "models.m.fallback": "other",
    "models.judge.steps.0.instruct.text": "Judge kindly.",
    "models.judge.budget_tokens": 9,
    "models.helper.steps": [],
    "guards.named": ["pii", "secrets"],
    "guards.listed.0.terms.words": False,
    "guards.judged.0.judge.rubric": "Is it true?",
    "gateway": {"guards": "unused"},
}
UNSEEN: Mapping[str, Any] = {
    "models.m.steps.1.self_refine": {"rounds": 1, "judge": "judge"},  # the same in another order
    "models.other.steps": [{"instruct": {"text": "Be brief."}}],
    "models.new": {"engine": "e"},
    "models.m.rpm": 9,
    "guards.unused": ["pii"],
    "gateway": {"guards": "listed"},  # which it passes anyway
}


async def test_a_composition_is_another_as_soon_as_anything_is_that_makes_the_answers(
    tree: Tree, tmp_path: Path
) -> None:
    async with following(tmp_path, tree) as here:
        before, plain = [await what_is_served(here.url, model) for model in ("m", "other")]
        assert before.served is None
        assert before.composition
        assert plain.composition not in (None, before.composition)
        for path, value in SEEN.items():
            await here.becomes(changed(tree, path, value))
            assert (await what_is_served(here.url, "m")).composition not in (None, before.composition), path
        for path, value in UNSEEN.items():
            await here.becomes(changed(tree, path, value))
            assert await what_is_served(here.url, "m") == before, path
        await here.becomes(changed(tree, "models.other.budget_tokens", 5))
        assert (await what_is_served(here.url, "other")).composition not in (None, plain.composition)


@pytest.mark.parametrize("file", ["examples.jsonl", "terms.txt"])
async def test_a_composition_outlasts_a_restart_and_changes_with_what_a_file_says(
    tree: Tree, tmp_path: Path, file: str
) -> None:
    before, path = await behind(tree, tmp_path), tmp_path / file
    text = path.read_text()
    path.write_text(text * 2)
    assert (await behind(tree, tmp_path)).composition not in (None, before.composition)
    path.write_text(text)  # only its time is another
    assert await behind(tree, tmp_path) == before


async def test_a_composition_is_of_what_the_callers_requests_pass(tree: Tree, tmp_path: Path) -> None:
    async with opened(None) as store:
        ring = Keyring(store, pepper(None))
        key, other = [(await ring.create(wanted({"name": name}), "the test")).key for name in ("a", "b")]
        before = await behind(tree, tmp_path, key=key)
        assert await behind(tree, tmp_path, key=other) == before
        await ring.update("a", rights({"guards": "unused"}), "the test")
        assert (await behind(tree, tmp_path, key=key)).composition not in (None, before.composition)
        await ring.update("a", rights({"guards": "absent"}), "the test")  # whoever asks it something is refused
        assert (await behind(tree, tmp_path, key=key)).composition


async def test_a_composition_cannot_be_guessed(tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = await behind(tree, tmp_path)
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "another"))  # hence with another pepper
    assert (await behind(tree, tmp_path)).composition not in (None, before.composition)


async def test_an_eval_over_another_composition_than_it_began_with_is_refused(tree: Tree, tmp_path: Path) -> None:
    task = Task("one", "exact", [Item("0", [{"role": "user", "content": "hi"}], ["hi"])])
    out = tmp_path / "run.jsonl"
    async with following(tmp_path, tree) as here:

        async def evaluated() -> Run:
            return await asyncio.to_thread(run_of, task, "m", out, here.url, None, None, 1)

        run = await evaluated()
        written = out.read_bytes()
        assert (len(run.answered), run.head.composition) == (1, (await what_is_served(here.url, "m")).composition)
        assert (await evaluated()).answered == run.answered
        await here.becomes(changed(tree, "models.judge.steps.0.instruct.text", "Judge kindly."))
        with pytest.raises(BadRequest, match=r"its composition \(steps, guards, budget, .*; choose another file"):
            await evaluated()
        assert out.read_bytes() == written
        await here.becomes(tree)
        assert (await evaluated()).answered == run.answered
