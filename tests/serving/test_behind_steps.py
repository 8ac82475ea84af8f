"""What stands behind steps as it does behind none: canaries, versions, usage, salts, budgets, log-probabilities."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from engine.openai import Answer
from engine.route import Route
from engine.sim import Fault, simulator
from penstock.chat import ChatRequest, Delta, Emit, Message, Reply, silent
from penstock.errors import BudgetSpent
from penstock.keyring import Keyring, pepper, wanted
from penstock.store import Store, opened
from penstock.used import used
from prompting.asking import each_choice
from registry.canary_figures import Both
from serving import stack as stacks
from serving.ledger import Ledger
from serving.meter import Meter
from serving.stack import Stack
from serving.tally import Tally
from tests.serving.conftest import run_gateway

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
HELLO: Any = {"messages": [{"role": "user", "content": "Where does the river go?"}]}
REFINED = {"steps": ["self_refine"]}


class AlwaysTried:
    """A trial that every request takes."""

    def __init__(self, other: Route, both: Both) -> None:
        self.other = other
        self._tally = Tally(both.canary, "m@2", "canary")

    def route(self, current: Route, exchange: Any, body: Any) -> Route:
        return self.other

    def tally(self, route: Route) -> Tally:
        return self._tally


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Stack]:
    """The stacks of the gateways that the test starts."""
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    found: list[Stack] = []
    init = Stack.__init__

    def kept(self: Stack, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        found.append(self)

    monkeypatch.setattr(stacks.Stack, "__init__", kept)
    return found


@asynccontextmanager
async def served(urls: Mapping[str, str], models: Any, **more: Any) -> AsyncIterator[httpx2.AsyncClient]:
    engines = {name: {"urls": [url], "probe": {"interval_s": 60}} for name, url in urls.items()}
    async with run_gateway(hot=True, engines=engines, models=models, **more) as client:
        yield client


@pytest.mark.parametrize("steps", [[], ["self_refine"]])
async def test_a_canary_that_fails_is_told_though_a_fallback_answers(made: list[Stack], steps: list[str]) -> None:
    models = {
        "m": {"engine": "good", "fallback": "spare", "steps": steps},
        "spare": {"engine": "good"},
        "broken": {"engine": "bad"},
    }
    both = Both()
    async with simulator() as good, simulator(Fault("status", status=500)) as bad:
        async with served({"good": good.url, "bad": bad.url}, models) as client:
            trial: Any = AlwaysTried(Route(made[0].pools["bad"], None, "m@2"), both)
            made[0].relays["m"].trial = trial
            answers = [await client.post(CHAT, json=HELLO | {"model": "m"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert {tuple(answer.headers.get_list("x-penstock-fallback")) for answer in answers} == {("spare",)}
    assert not any("x-penstock-model-version" in answer.headers for answer in answers)
    assert (both.canary.requests, both.canary.errors) == (3, 3)


async def test_a_canary_behind_steps_is_counted_as_one_before_none(made: list[Stack]) -> None:
    both = Both()
    async with simulator() as sim, served({"e": sim.url}, {"m": {"engine": "e", **REFINED}}) as client:
        trial: Any = AlwaysTried(Route(made[0].pools["e"], None, "m@2"), both)
        made[0].relays["m"].trial = trial
        answer = await client.post(CHAT, json=HELLO | {"model": "m", "stream": True})
    assert answer.headers["x-penstock-model-version"] == "m@2"
    canary = both.canary
    assert (canary.requests, canary.errors, canary.first.count, canary.length.count) == (1, 0, 1, 1)


async def test_the_version_is_the_models_and_no_judges(made: list[Stack]) -> None:
    models = {"m": {"engine": "e", "guards": "polite"}, "judge": {"engine": "j"}}
    guards = {"polite": [{"judge": {"model": "judge", "rubric": "Is it polite?", "on": "input", "fail": "open"}}]}
    async with simulator() as sim, simulator() as other:
        async with served({"e": sim.url, "j": other.url}, models, guards=guards) as client:
            for name in models:
                relay = made[0].relays[name]
                relay.current = Route(relay.current.pool, None, f"{name}@1")
            answer = await client.post(CHAT, json=HELLO | {"model": "m"})
        assert [request for request in other.requests if request.path == CHAT]
    assert answer.headers["x-penstock-model-version"] == "m@1"


async def charged(store: Store, *bodies: Any, **model: Any) -> tuple[list[int], dict[str, Any] | None]:
    ledger = Ledger(store)
    async with simulator() as sim, served({"e": sim.url}, {"m": {"engine": "e", **model}}, ledger=ledger) as client:
        statuses = [(await client.post(CHAT, json=HELLO | {"model": "m", **body})).status_code for body in bodies]
    await ledger.close()
    rows = await used(store, ["model"])
    return statuses, rows[0] if rows else None


async def test_work_that_leads_to_a_refusal_is_paid_for(made: list[Stack], tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/usage.db") as store:
        statuses, row = await charged(store, {}, steps=["least_to_most"], budget_tokens=1)
    assert statuses == [400]
    assert row is not None
    assert (row["requests"], row["completion_tokens"]) == (1, 1)


async def test_what_steps_ask_shares_the_prefix_cache_with_the_caller_alone(made: list[Stack]) -> None:
    async with opened(None) as store:
        key = (await Keyring(store, pepper(None)).create(wanted({"name": "user"}), "the test")).key
    models = {"m": {"engine": "e", "guards": "polite"}, "judge": {"engine": "e"}}
    guards = {"polite": [{"judge": {"model": "judge", "rubric": "Is it polite?", "on": "input", "fail": "open"}}]}
    async with simulator() as sim, served({"e": sim.url}, models, guards=guards, stored=True) as client:
        await client.post(CHAT, json=HELLO | {"model": "m"}, headers={"authorization": f"Bearer {key}"})
        salts = [request.body.get("cache_salt") for request in sim.requests if request.path == CHAT]
    assert len(salts) == 2
    assert len(set(salts)) == 1
    assert salts[0]


async def test_a_budget_holds_where_calls_run_side_by_side() -> None:
    given = 0

    async def wordy(request: ChatRequest, emit: Emit) -> Reply:
        nonlocal given
        for _ in range(50):
            given += 100
            await emit(Delta("four" * 100))
            await asyncio.sleep(0)
        return Reply(Message(role="assistant", content=""))

    chat = Meter(budget=1000).around(wordy)
    with pytest.raises(BudgetSpent):
        await each_choice(ChatRequest(model="m", n=16, **HELLO), silent, chat)
    assert given <= 1000 + 16 * 100  # a piece of each may be on its way


@pytest.mark.parametrize("stream", [False, True])
async def test_what_guards_ask_is_paid_for_and_outside_of_the_budget(
    made: list[Stack], tmp_path: Path, stream: bool
) -> None:
    def scripted(answer: str) -> Any:
        return {"kind": "scripted", "options": {"answers": [answer]}}

    guards = {"polite": [{"judge": {"model": "judge", "rubric": "It must rhyme.", "on": "both"}}]}
    tree: Any = {
        "engines": {"e": scripted("one two three"), "j": scripted("no")},
        "models": {
            "m": {"engine": "e", "guards": "polite", "budget_tokens": 3},
            "judge": {"engine": "j", "steps": [{"critique_revise": {}}]},
        },
    }
    async with opened(f"sqlite:///{tmp_path}/usage.db") as store:
        ledger = Ledger(store)
        async with run_gateway(hot=True, **tree, guards=guards, ledger=ledger) as client:
            asked = HELLO | {"model": "m", "stream": stream, "stream_options": {"include_usage": True}}
            answer = await client.post(CHAT, json=asked if stream else HELLO | {"model": "m"})
        await ledger.close()
        rows = await used(store, ["model"])
    told = orjson.loads(answer.text.split("data: ")[-2]) if stream else answer.json()
    usage = told["usage"]
    steps = usage["penstock"]["steps"]
    assert answer.status_code == 200
    assert set(steps) == {"polite.judge", "answer"}
    assert steps["answer"]["completion_tokens"] == 3
    assert (
        steps["polite.judge"]["completion_tokens"] > 3
    )  # the judge is a composed model, whose calls are a guard's too
    for name in ("prompt_tokens", "completion_tokens"):
        assert rows[0][name] == usage[name] == sum(step[name] for step in steps.values())


async def test_what_guards_ask_about_texts_that_are_only_embedded_is_paid_for_too(
    made: list[Stack], tmp_path: Path
) -> None:
    rows = {}
    for verdict in ("no", "yes"):
        async with opened(f"sqlite:///{tmp_path}/{verdict}.db") as store, simulator() as sim:
            ledger = Ledger(store)
            tree: Any = {
                "engines": {"e": {"urls": [sim.url]}, "j": {"kind": "scripted", "options": {"answers": [verdict]}}},
                "models": {"m": {"engine": "e", "guards": "polite"}, "judge": {"engine": "j"}, "bare": {"engine": "e"}},
                "guards": {"polite": [{"judge": {"model": "judge", "rubric": "It must rhyme.", "on": "input"}}]},
            }
            async with run_gateway(hot=True, ledger=ledger, **tree) as client:
                body = {"input": "Where does the river go?"}
                bare = await client.post("/v1/embeddings", json=body | {"model": "bare"})
                answer = await client.post("/v1/embeddings", json=body | {"model": "m"})
            await ledger.close()
            rows[answer.status_code] = {row["model"]: row for row in await used(store, ["model"])}["m"]
    embedded = bare.json()["usage"]["prompt_tokens"]
    assert set(rows) == {200, 400}
    assert [row["requests"] for row in rows.values()] == [1, 1]
    assert [row["completion_tokens"] for row in rows.values()] == [1, 1]  # the judge's yes or no
    assert rows[200]["prompt_tokens"] - embedded == rows[400]["prompt_tokens"] > 0


def test_probabilities_of_pieces_without_text_stream_too() -> None:
    found = {"content": [{"token": "\\xf0\\x9f", "logprob": -0.1}]}
    (delta,) = Answer().add({"choices": [{"index": 0, "delta": {"content": ""}, "logprobs": found}]})
    assert delta.logprobs == found
