"""Steps that a request chooses itself, in the field `penstock`."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from openai import AsyncOpenAI

from engine.sim import Simulator, simulator
from guards.guard import Guard
from penstock.callers import LOCAL
from penstock.config import Config
from penstock.keyring import Keyring, wanted
from penstock.steps import Parts
from penstock.store import opened
from serving import composing
from serving.compositions import MOST_CHOSEN, Compositions, unasked, unreached
from serving.meter import MOST_CHOSEN_ANSWERS
from tests.serving.conftest import run_gateway
from tests.serving.test_composed import BODIES, CHAT, HELLO, MESSAGES, RESPONSES, TEXT, Draft, Shout

pytestmark = pytest.mark.anyio

PEPPER = "pepper of the tests, which is long enough"
LOUD: Any = {"penstock": {"steps": ["shout"]}}
TEXTS: Any = {
    CHAT: lambda said: said["choices"][0]["message"]["content"],
    TEXT: lambda said: said["choices"][0]["text"],
    RESPONSES: lambda said: said["output"][0]["content"][0]["text"],
    MESSAGES: lambda said: said["content"][0]["text"],
}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    monkeypatch.setattr(composing, "STEPS", {**composing.STEPS, "draft": Draft, "shout": Shout})


@asynccontextmanager
async def serving(sim: Simulator, **more: Any) -> AsyncIterator[httpx2.AsyncClient]:
    tree: dict[str, Any] = {
        "engines": {"e": {"urls": [sim.url]}},
        "models": {
            "bare": {"engine": "e"},
            "loud": {"engine": "e", "steps": ["shout"]},
            "other": {"engine": "e"},
        },
    }
    async with run_gateway(hot=True, **tree, **more) as client:
        yield client


@asynccontextmanager
async def keyed(folder: Path, sim: Simulator, key: Mapping[str, Any]) -> AsyncIterator[httpx2.AsyncClient]:
    database = f"sqlite:///{folder}/keys.db"
    async with opened(database) as store:
        made = await Keyring(store, PEPPER.encode()).create(wanted({"name": "a", **key}), "test")
    async with serving(sim, stored=True, state={"database": database, "pepper": PEPPER}) as client:
        client.headers["authorization"] = f"Bearer {made.key}"
        yield client


async def test_they_take_the_place_of_the_models_own_on_every_route_and_no_engine_sees_the_field() -> None:
    async with simulator() as sim, serving(sim) as client:
        for path, body in BODIES.items():
            for model, field, is_loud in (
                ("bare", LOUD, True),
                ("loud", {"penstock": {"steps": []}}, False),
                ("loud", {}, True),
                ("loud", {"penstock": None}, True),
                ("bare", {"penstock": None}, False),
            ):
                answer = await client.post(path, json=body | {"model": model} | field)
                text = TEXTS[path](answer.json())
                assert answer.status_code == 200
                assert (text == text.upper()) == is_loud, (path, model, field)
    assert not [request for request in sim.requests if b"penstock" in request.raw]


async def test_openais_client_sends_them_as_extra_body() -> None:
    async with simulator() as sim, serving(sim) as client:
        async with AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="any", max_retries=0) as caller:
            answer = await caller.chat.completions.create(
                **HELLO, model="bare", extra_body={"penstock": {"steps": ["draft"]}}
            )
    assert answer.usage
    usage: Any = answer.usage.to_dict()
    assert usage["penstock"]["steps"].keys() == {"draft", "answer"}


WRONG = [
    ({"steps": [{"drat": {}}]}, 400, "penstock.steps[0]", "did you mean 'draft'?"),
    ({"steps": ["shout", {"draft": {"fist": 1}}]}, 400, "penstock.steps[1].draft", "did you mean 'first'?"),
    ({"steps": [{"draft": {"first": "bair"}}]}, 400, "penstock.steps[0]", "did you mean 'bare'?"),
    ({"steps": [{"shout": {"file": "/etc/passwd"}}]}, 403, "penstock.steps[0]", "the configuration's alone"),
    ({"steps": ["shout", {"prompt": {}}]}, 403, "penstock.steps[1]", "the configuration's alone"),
    ({"steps": [{"a": {}, "b": {}}]}, 400, "penstock.steps[0]", ""),
    ({"steps": [{"shout": "loud"}]}, 400, "penstock.steps[0]", "the options of shout are {OPTION: VALUE}"),
    ({"steps": [{"guard": "pi"}]}, 400, "penstock.steps[0].guard", "did you mean 'pii'?"),
    ({"steps": [7]}, 400, "penstock.steps[0]", ""),
    ({"steps": ["shout"] * 17}, 400, "penstock.steps", ""),
    ({"steps": "shout"}, 400, "penstock.steps", ""),
    ({"steps": [], "budget": 9}, 400, "penstock.budget", ""),
    ({"steps": [{"instruct": {"text": "a" * 70_000}}]}, 400, "penstock", "policy.max_schema_bytes"),
]


async def test_a_mistake_in_them_is_told_with_its_place() -> None:
    async with simulator() as sim, serving(sim) as client:
        for field, status, param, said in WRONG:
            answer = await client.post(CHAT, json=HELLO | {"model": "bare", "penstock": field})
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (status, param), error
            assert said in error["message"]
        other = await client.post("/v1/embeddings", json={"model": "bare", "input": "a", **LOUD})
    assert (other.status_code, other.json()["error"]["param"]) == (400, "penstock")
    assert not [request for request in sim.requests if request.path in (CHAT, "/v1/embeddings")]


def test_no_step_that_a_caller_may_choose_reads_a_file_by_default() -> None:
    for kind in {**composing.STEPS, **composing.IN_POLICIES}.values():
        needed = {name for name, field in kind.model_fields.items() if field.is_required()}
        if kind.choosable and not needed & kind.operators:
            assert not kind.model_construct().files(Path("/operators"))


async def test_a_policy_that_asks_others_or_reads_files_is_none_for_callers_to_choose(tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("bomb\n")
    guards: Any = {
        "outside": ["pii", {"http": {"url": "http://guard.internal/check"}}],
        "listed": [{"terms": {"file": str(tmp_path / "terms.txt")}}],
        "plain": [{"pii": {"action": "mask"}}],
    }
    async with simulator() as sim, serving(sim, guards=guards) as client:
        for name, status in {"outside": 403, "listed": 403, "plain": 200}.items():
            answer = await client.post(
                CHAT, json=HELLO | {"model": "bare", "penstock": {"steps": ["shout", {"guard": name}]}}
            )
            assert answer.status_code == status, answer.text
            if status == 403:
                assert answer.json()["error"]["param"] == "penstock.steps[1]"


async def test_they_take_the_scope_steps(tmp_path: Path) -> None:
    async with simulator() as sim, keyed(tmp_path, sim, {}) as client:
        for path, body in BODIES.items():
            answer = await client.post(path, json=body | {"model": "bare"} | LOUD)
            assert answer.status_code == 403
            assert "scope steps" in answer.json()["error"]["message"]


async def test_the_models_that_they_ask_are_those_of_the_key(tmp_path: Path) -> None:
    key = {"scopes": ["generate", "steps"], "models": ["bare", "loud"]}
    async with simulator() as sim, keyed(tmp_path, sim, key) as client:
        for first, status in (("loud", 200), ("other", 403), ("none", 403), ("loud", 200)):
            steps = [{"draft": {"first": first}}]
            answer = await client.post(CHAT, json=HELLO | {"model": "bare", "penstock": {"steps": steps}})
            assert answer.status_code == status, first


async def test_a_key_of_idempotency_is_one_choice_of_steps() -> None:
    async with simulator() as sim, serving(sim) as client:
        client.headers["idempotency-key"] = "one"
        fields: list[Any] = [LOUD, LOUD, {"penstock": {"steps": []}}, {}]
        answers = [await client.post(CHAT, json=HELLO | {"model": "bare"} | field) for field in fields]
    assert [answer.status_code for answer in answers] == [200, 200, 422, 422]
    assert answers[0].content == answers[1].content


async def test_however_steps_multiply_an_engine_is_asked_for_so_many_answers() -> None:
    multiplying: list[tuple[list[Any], int]] = [
        (["tree_of_thoughts"] * 16, 1),
        ([{"self_consistency": {"k": 64}}] * 3, 1),
        ([{"self_consistency": {"k": 16}}], 5),
    ]
    async with simulator() as sim, serving(sim) as client:
        for steps, n in multiplying:
            sim.requests.clear()
            answer = await client.post(CHAT, json=HELLO | {"model": "bare", "n": n, "penstock": {"steps": steps}})
            asked = [orjson.loads(request.raw) for request in sim.requests if request.path == CHAT]
            assert sum(body.get("n") or 1 for body in asked) <= MOST_CHOSEN_ANSWERS
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "budget_spent")
        few = {"penstock": {"steps": [{"self_consistency": {"k": 16}}]}}
        assert (await client.post(CHAT, json=HELLO | {"model": "bare", "n": 4} | few)).status_code == 200


def test_what_was_chosen_is_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(engines={"e": {"kind": "scripted"}}, models={"m": {"engine": "e"}})
    compositions = Compositions(unreached, unasked)
    compositions.change(config)
    first = compositions.chosen("m", ["shout"], LOCAL)
    assert compositions.chosen("m", ["shout"], LOCAL) is first
    for number in range(2 * MOST_CHOSEN):
        compositions.chosen("m", [{"instruct": {"text": str(number)}}], LOCAL)
    assert len(compositions._chosen) == MOST_CHOSEN
    assert compositions.chosen("m", ["shout"], LOCAL) is not first


def test_the_models_own_guards_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    class Counted(Guard):
        def look(self, parts: Parts) -> None:
            made.append("guard")

    monkeypatch.setattr(composing, "IN_POLICIES", {**composing.IN_POLICIES, "counted": Counted})
    of_model: Any = {"engine": "e", "guards": "strict", "steps": ["shout", {"guard": "strict"}]}
    config = Config(engines={"e": {"kind": "scripted"}}, guards={"strict": ["counted"]}, models={"m": of_model})
    compositions = Compositions(unreached, unasked)
    own, before = compositions.change(config)["m"], len(made)
    chosen = compositions.chosen("m", [{"instruct": {"text": "Be short."}}], LOCAL)
    assert (before > 0, len(made)) == (True, before)
    assert [*chosen.arounds[:2]] == [own.arounds[0], own.arounds[2]]
    assert len(chosen.arounds) == 3
    compositions.chosen("m", [{"guard": "strict"}], LOCAL)
    assert len(made) > before
