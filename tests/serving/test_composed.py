"""Composed models as they are configured: steps around a scripted engine, or around one that is reached over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from pydantic import Field

from engine.sim import Fault, Simulator, simulator
from penstock.chat import Chat, ChatRequest, Delta, Emit, Reply
from penstock.config import WrongAt
from penstock.errors import BadRequest, ConfigError, EngineError
from penstock.source import Source
from penstock.steps import Around, OnInput, Parts, Step
from penstock.store import opened
from penstock.used import used
from prompting.asking import ask
from serving import answer as answering
from serving import composing
from serving.compositions import check
from serving.ledger import Ledger
from tests.serving.conftest import run_gateway

pytestmark = pytest.mark.anyio

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
HELLO: Any = {"messages": [{"role": "user", "content": "Where does the river go?"}]}
BODIES: dict[str, Any] = {
    CHAT: HELLO,
    TEXT: {"prompt": "Where does the river go?"},
    RESPONSES: {"input": "Where does the river go?"},
    MESSAGES: HELLO | {"max_tokens": 20},
}


class Draft(Step):
    """Asks twice: the second time for the answer. `first` may be another model's."""

    first: str | None = Field(None, description="the model that drafts")

    def around(self, parts: Parts) -> Around:
        other = parts.chat(self.first) if self.first else None

        def wrap(chat: Chat) -> Chat:
            async def drafted(request: ChatRequest, emit: Emit) -> Reply:
                draft = await ask(other or chat, request.but(n=None), "draft")
                reply = await chat(request, emit)
                return Reply.of(reply.choices, draft.usage + reply.usage)

            return drafted

        return wrap


class Shout(Step):
    operators = frozenset({"file"})
    file: str | None = Field(None, description="a file of the operator's")

    def around(self, parts: Parts) -> Around:
        def wrap(chat: Chat) -> Chat:
            async def loud(request: ChatRequest, emit: Emit) -> Reply:
                async def louder(delta: Delta) -> None:
                    await emit(Delta(delta.content.upper(), choice=delta.choice))

                reply = await chat(request, louder)
                loud = [
                    choice.message.model_copy(update={"content": choice.message.text.upper()})
                    for choice in reply.choices
                ]
                choices = [replace(choice, message=said) for choice, said in zip(reply.choices, loud, strict=True)]
                return Reply.of(choices, reply.usage)

            return loud

        return wrap

    def on_input(self, parts: Parts) -> OnInput:
        async def loud(texts: Sequence[str]) -> Sequence[str]:
            if any("secret" in text for text in texts):
                raise BadRequest("no secrets here")
            return [text.upper() for text in texts]

        return loud


class Sleepy(Step):
    def around(self, parts: Parts) -> Around:
        def wrap(chat: Chat) -> Chat:
            async def slow(request: ChatRequest, emit: Emit) -> Reply:
                await asyncio.sleep(0.3)
                if "fail" in request.messages[-1].text:
                    raise EngineError("it broke")
                return await chat(request, emit)

            return slow

        return wrap


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    monkeypatch.setattr(composing, "STEPS", {**composing.STEPS, "draft": Draft, "shout": Shout, "sleepy": Sleepy})


def scripted(**models: Mapping[str, Any]) -> dict[str, Any]:
    engine = {"kind": "scripted", "options": {"answers": ["one two three four"]}}
    return {"engines": {"e": engine}, "models": {name: {"engine": "e", **model} for name, model in models.items()}}


@asynccontextmanager
async def over_sim(sim: Simulator, more: Mapping[str, Any] = {}, **models: Any) -> AsyncIterator[httpx2.AsyncClient]:
    tree = {
        "engines": {"e": {"urls": [sim.url], "probe": {"interval_s": 0.2, "timeout_s": 1}}},
        "models": {name: {"engine": "e", **model} for name, model in models.items()},
    }
    async with run_gateway(hot=True, **{**tree, **more}) as client:
        yield client


def chunks(answer: httpx2.Response) -> list[dict[str, Any]]:
    events = [event for event in answer.content.split(b"\n\n") if event.startswith(b"data: {")]
    return [orjson.loads(event.removeprefix(b"data: ")) for event in events]


WRONG = [
    ("steps: [{drat: {}}]", "9: unknown step 'drat', did you mean 'draft'?"),
    ("steps: [{draft: {fist: m}}]", "9: draft has no option 'fist', did you mean 'first'?"),
    ("steps: [draft, {draft: {first: bsae}}]", "9: no model 'bsae' is served here, did you mean 'base'?"),
    ("steps: [{instruct: {text: ''}}]", "9: instruct.text: "),
    ("steps: [{draft: {first: other}}]", "models ask one another in a circle: other -> m -> other"),
    ("steps: {draft: {}}", "9: models.m.steps: a list, such as"),
]


def checked(source: Source) -> None:
    """As `penstock serve` does it."""
    try:
        check(source.load())
    except WrongAt as error:
        raise source.wrong(error) from error


@pytest.mark.parametrize(("steps", "said"), WRONG)
def test_a_mistake_in_steps_is_told_with_its_line_and_what_is_near(tmp_path: Path, steps: str, said: str) -> None:
    path = tmp_path / "penstock.yaml"
    path.write_text(
        "engines:\n  e: {kind: scripted}\nmodels:\n  base: {engine: e}\n"
        f"  other: {{engine: e, steps: [{{draft: {{first: m}}}}]}}\n  m:\n    engine: e\n\n    {steps}\n"
    )
    source = Source(path)
    with pytest.raises(ConfigError) as raised:
        checked(source)
    assert said in raised.value.message
    assert str(path) in raised.value.message


async def test_models_of_steps_are_listed_with_the_others() -> None:
    async with run_gateway(hot=True, **scripted(base={}, loud={"steps": ["shout"]})) as client:
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["base", "loud"]


async def test_three_choices_come_as_three_on_both_routes() -> None:
    async with run_gateway(hot=True, **scripted(m={"steps": ["shout"]})) as client:
        for path in (CHAT, TEXT):
            body = BODIES[path] | {"model": "m", "n": 3}
            whole = (await client.post(path, json=body)).json()
            assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
            assert whole["usage"]["completion_tokens"] == 12
            streamed = await client.post(path, json=body | {"stream": True})
            said = [choice for chunk in chunks(streamed) for choice in chunk["choices"]]
            roles = [choice["index"] for choice in said if choice.get("delta", {}).get("role")]
            assert roles == ([0, 1, 2] if path == CHAT else [])
            ends = [choice["index"] for choice in said if choice["finish_reason"]]
            assert ends == [0, 1, 2]
            for index in range(3):
                pieces = [choice.get("delta", choice) for choice in said if choice["index"] == index]
                text = "".join(piece.get("content") or piece.get("text") or "" for piece in pieces)
                assert text == "ONE TWO THREE FOUR"
            assert streamed.content.endswith(b"data: [DONE]\n\n")


async def test_usage_is_the_sum_and_told_by_step(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/usage.db") as store:
        ledger = Ledger(store)
        async with run_gateway(hot=True, ledger=ledger, **scripted(m={"steps": ["draft"]})) as client:
            chat = (await client.post(CHAT, json=HELLO | {"model": "m"})).json()["usage"]
            response = (await client.post(RESPONSES, json=BODIES[RESPONSES] | {"model": "m"})).json()["usage"]
            message = (await client.post(MESSAGES, json=BODIES[MESSAGES] | {"model": "m"})).json()["usage"]
        await ledger.close()
        (row,) = await used(store, [])
    assert (chat["completion_tokens"], response["output_tokens"], message["output_tokens"]) == (8, 8, 8)
    for usage in (chat, response, message):
        assert usage["penstock"]["steps"]["draft"] == {
            "calls": 1, "prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9,
        }  # fmt: skip
        assert usage["penstock"]["steps"]["answer"]["completion_tokens"] == 4
    assert (row["requests"], row["completion_tokens"], row["prompt_tokens"], row["estimated"]) == (3, 24, 30, 0)


async def test_what_an_engine_reads_for_a_step_is_in_the_ledger_too(tmp_path: Path) -> None:
    (tmp_path / "shown.jsonl").write_text('{"user": "Where does rain go?", "assistant": "Down."}\n')
    shown = {"few_shot": {"examples": "shown.jsonl", "choose": "similar", "k": 1, "model": "vectors"}}
    async with opened(f"sqlite:///{tmp_path}/usage.db") as store, simulator() as sim:
        ledger = Ledger(store)
        more = {"files": str(tmp_path), "ledger": ledger}
        async with over_sim(sim, more, m={"steps": [shown]}, vectors={}) as client:
            usages = [(await client.post(CHAT, json=HELLO | {"model": "m"})).json()["usage"] for _ in range(2)]
            example = await client.post("/v1/embeddings", json={"model": "vectors", "input": "Where does rain go?"})
        await ledger.close()
        rows = {row["model"]: row for row in await used(store, ["model"])}
    assert all(usage["penstock"]["steps"]["few_shot.embedding"]["prompt_tokens"] > 0 for usage in usages)
    answered, read_once = sum(usage["prompt_tokens"] for usage in usages), example.json()["usage"]["prompt_tokens"]
    assert rows["m"]["prompt_tokens"] == answered + read_once


async def test_a_budget_bounds_all_calls_together() -> None:
    async with simulator(mean_tokens=64) as sim:
        async with over_sim(
            sim,
            m={"steps": ["draft"], "budget_tokens": 30},
            tiny={"steps": ["draft"], "budget_tokens": 1},
            plain={"budget_tokens": 30},
        ) as client:
            answer = await client.post(CHAT, json=HELLO | {"model": "m", "max_tokens": 20, "ignore_eos": True})
            spent = [
                await client.post(CHAT, json=HELLO | {"model": "tiny", "stream": stream}) for stream in (True, False)
            ]
            await client.post(TEXT, json=BODIES[TEXT] | {"model": "plain"})
    asked = [request.body for request in sim.requests if request.path in (CHAT, TEXT)]
    assert [body["max_tokens"] for body in asked[:2]] == [20, 10]
    assert answer.json()["usage"]["completion_tokens"] == 30
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert asked[-1]["max_tokens"] == 16  # as plain completions have it, and not all that is left
    assert [(each.status_code, each.json()["error"]["code"]) for each in spent] == [(400, "budget_spent")] * 2


async def test_what_is_nested_too_deeply_is_refused_by_every_route() -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = {"a": deep}
    called = [{"type": "tool_use", "id": "a", "name": "f", "input": deep}]
    turns = [*HELLO["messages"], {"role": "assistant", "content": called}, *HELLO["messages"]]
    async with run_gateway(hot=True, **scripted(m={"steps": ["shout"]})) as client:
        body = HELLO | {"messages": [{"role": "user", "content": "hi", "x": deep}]}
        answers = [await client.post(path, json=each) for path, each in (
            (CHAT, body | {"model": "m"}),
            (RESPONSES, {"input": body["messages"], "model": "m"}),
            (MESSAGES, {"max_tokens": 4, "messages": turns, "model": "m"}),
        )]  # fmt: skip
    assert [answer.status_code for answer in answers] == [400] * 3
    assert all("nested too deeply" in answer.text for answer in answers)


@pytest.mark.parametrize("path", BODIES)
async def test_a_silent_stream_says_that_it_is_alive_and_ends_in_its_routes_error(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "SILENCE_S", 0.1)
    async with run_gateway(hot=True, **scripted(m={"steps": ["sleepy"]})) as client:
        failing = json.loads(json.dumps(BODIES[path]).replace("Where", "fail: where"))
        good, bad = [
            (await client.post(path, json=body | {"model": "m", "stream": True})).content
            for body in (BODIES[path], failing)
        ]
    alive = b"event: ping" if path == MESSAGES else b": "
    assert any(event.startswith(alive) for event in good.split(b"\n\n"))
    assert b"four" in good
    last = bad.split(b"\n\n")[-2]
    kind, _, data = last.rpartition(b"data: ")
    document = orjson.loads(data)
    assert kind == (b"event: error\n" if path in (MESSAGES, RESPONSES) else b"")
    assert "it broke" in (document["message"] if path == RESPONSES else document["error"]["message"])
    assert b"[DONE]" not in bad


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_every_call(stream: bool) -> None:
    async with simulator(mean_tokens=5000, itl_s=0.01) as sim:
        async with over_sim(sim, m={"steps": ["draft"]}) as client:
            body = HELLO | {"model": "m", "stream": stream, "ignore_eos": True, "max_tokens": 20_000}
            asking = asyncio.create_task(client.post(CHAT, json=body))
            async with asyncio.timeout(10):
                while not sim.running:
                    await asyncio.sleep(0.01)
                asking.cancel()
                await asyncio.wait([asking])
                while sim.running or sim.waiting:
                    await asyncio.sleep(0.01)
            assert sim.aborted == 1
            assert sim.completed == 0


async def test_a_fallback_answers_inside_the_same_steps() -> None:
    async with simulator() as sim, simulator(Fault("status", status=500)) as broken:
        engines = {"e": {"urls": [sim.url]}, "b": {"urls": [broken.url]}}
        models = {
            "m": {"engine": "b", "fallback": "spare", "steps": ["shout"]},
            "spare": {"engine": "e"},
        }
        async with run_gateway(hot=True, engines=engines, models=models) as client:
            answer = await client.post(CHAT, json=HELLO | {"model": "m", "stream": True})
    text = "".join(choice["delta"].get("content", "") for chunk in chunks(answer) for choice in chunk["choices"])
    assert answer.headers["x-penstock-fallback"] == "spare"
    assert text
    assert text == text.upper()


async def test_the_engine_is_asked_by_its_own_name() -> None:
    async with simulator(model="own") as sim:
        tree = {"engines": {"e": {"urls": [sim.url], "model": "own"}}}
        async with over_sim(sim, tree, m={"steps": ["shout"]}) as client:
            for path, body in BODIES.items():
                answer = await client.post(path, json=body | {"model": "m"})
                assert answer.json()["model"] == "m"
    asked = [request.body for request in sim.requests if request.path in BODIES]
    assert {body["model"] for body in asked} == {"own"}
    assert len(asked) == 4


async def test_what_generates_nothing_is_relayed_past_the_steps_that_look_at_it() -> None:
    async with simulator() as sim, over_sim(sim, m={"steps": ["shout"]}, plain={"steps": ["draft"]}) as client:
        embedded = await client.post("/v1/embeddings", json={"model": "m", "input": ["quiet", "words"]})
        tokens = await client.post("/tokenize", json={"model": "m", "prompt": "quiet"})
        refused = await client.post("/v1/embeddings", json={"model": "m", "input": "a secret"})
        ids = await client.post("/v1/embeddings", json={"model": "m", "input": [1, 2, 3]})
        untouched = await client.post("/v1/embeddings", json={"model": "plain", "input": [1, 2, 3]})
        schema = {"type": "function", "function": {"name": "f", "parameters": {"enum": [1, 2]}}}
        with_tools = await client.post("/tokenize", json=HELLO | {"model": "m", "tools": [schema]})
        prompt = await client.post(TEXT, json={"model": "m", "prompt": [1, 2, 3]})
    assert [each.status_code for each in (embedded, tokens, untouched, with_tools)] == [200] * 4
    bodies = [request.body for request in sim.requests if request.path in ("/v1/embeddings", "/tokenize")][:3]
    assert [body.get("input") or body.get("prompt") for body in bodies] == [["QUIET", "WORDS"], "QUIET", [1, 2, 3]]
    assert [(each.status_code, each.json()["error"]["param"]) for each in (ids, prompt)] == [
        (400, "input"),
        (400, "prompt"),
    ]
    assert refused.json()["error"]["message"] == "no secrets here"


async def test_the_response_cache_keeps_no_answer_of_steps() -> None:
    async with simulator() as sim:
        more = {"response_cache": {"enabled": True}}
        async with over_sim(sim, more, m={"steps": ["shout"]}, bare={}) as client:
            for model in ("m", "m", "bare", "bare"):
                answer = await client.post(CHAT, json=HELLO | {"model": model, "temperature": 0})
                assert ("x-penstock-cache" in answer.headers) == (model == "bare")
            chosen = HELLO | {"model": "bare", "temperature": 0, "penstock": {"steps": []}}
            assert "x-penstock-cache" not in (await client.post(CHAT, json=chosen)).headers
    assert sum(request.path == CHAT for request in sim.requests) == 4


async def test_a_chat_names_a_stored_prompt_as_the_documentation_has_it(tmp_path: Path) -> None:
    (tmp_path / "prompts/support").mkdir(parents=True)
    (tmp_path / "prompts/support/2.yaml").write_text("{variables: {product: {}}, system: 'You support {{ product }}.'}")
    models = {
        "desk": {"steps": ["prompt"]},
        "bare": {},
        "loud": {"steps": ["shout"]},
        "shy": {"steps": ["prompt"], "guards": "no_mail"},
    }
    more = {"files": str(tmp_path), "guards": {"no_mail": [{"pii": {"action": "block", "kinds": ["email"]}}]}}
    prompt = {"id": "support", "version": "2", "variables": {"product": "Penstock"}}
    mail = prompt | {"variables": {"product": "ann@example.org"}}
    async with simulator() as sim, over_sim(sim, more, **models) as client:
        for path in (CHAT, RESPONSES):
            for model, given, status in (
                ("desk", prompt, 200),
                ("desk", {"version": "2"}, 400),
                ("desk", None, 200),
                ("bare", prompt, 400),
                ("bare", None, 200),
                ("loud", prompt, 400),
                ("shy", prompt, 200),
                ("shy", mail, 400),
            ):
                answer = await client.post(path, json=BODIES[path] | {"model": model, "prompt": given})
                assert answer.status_code == status, (path, model, given, answer.text)
                if status == 400 and given is prompt:
                    assert answer.json()["error"]["param"] == "prompt"
        seen = [request.raw for request in sim.requests if request.path in (CHAT, RESPONSES)]
    assert sum(b"You support Penstock." in raw for raw in seen) == 4
    assert not [raw for raw in seen if b"ann@" in raw]
