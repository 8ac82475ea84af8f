"""The simulator's routes as the official clients and plain HTTP see them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import sse
from engine.sim import Fault, Model, Simulator, expected, simulator
from engine.sim.cache import PrefixCache
from engine.sim.connection import Received
from engine.sim.generation import Speed
from engine.sim.moves import Head, Ticket, Whole
from engine.sim.scheduler import Scheduler
from engine.sim.simulator import KNOWN
from tests.engine.sim.conftest import ASK, CHAT, STREAM, client_of
from tests.engine.sim.test_broken_streams import document

pytestmark = pytest.mark.anyio

TEXT = expected(ASK)
QUESTION = ASK["messages"][0]["content"]


@asynccontextmanager
async def clients(**options: Any) -> AsyncIterator[tuple[openai.AsyncOpenAI, anthropic.AsyncAnthropic]]:
    async with simulator(**options) as sim:
        ours = openai.AsyncOpenAI(base_url=f"{sim.url}/v1", api_key="none", max_retries=0)
        theirs = anthropic.AsyncAnthropic(base_url=sim.url, api_key="none", max_retries=0)
        async with ours, theirs:
            yield ours, theirs


async def test_openais_client_streams_a_chat() -> None:
    async with clients() as (client, _):
        stream = await client.chat.completions.create(
            model="sim",
            messages=[{"role": "user", "content": QUESTION}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT.text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == TEXT.completion_tokens


async def test_openais_client_gets_a_chat_a_completion_and_a_response_whole() -> None:
    async with clients() as (client, _):
        chat = await client.chat.completions.create(model="sim", messages=[{"role": "user", "content": QUESTION}], n=2)
        plain = await client.completions.create(model="sim", prompt=["The river", "The gate"], max_tokens=7)
        response = await client.responses.create(model="sim", input=QUESTION)
    assert [choice.message.content for choice in chat.choices] == [TEXT.text, expected({**ASK, "n": 2}, choice=1).text]
    assert [choice.text for choice in plain.choices] == [
        expected({"prompt": prompt, "max_tokens": 7}).text for prompt in ("The river", "The gate")
    ]
    assert (response.output_text, response.status) == (TEXT.text, "completed")


async def test_openais_client_streams_a_response() -> None:
    async with clients() as (client, _):
        stream = await client.responses.create(model="sim", input=QUESTION, stream=True, max_output_tokens=9)
        events = [event async for event in stream]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert deltas == list(expected({**ASK, "max_tokens": 9}).tokens)
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert events[-1].response.status == "incomplete"
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_anthropics_client_gets_a_message_whole_and_streamed() -> None:
    async with clients() as (_, client):
        whole = await client.messages.create(
            model="sim", max_tokens=500, messages=[{"role": "user", "content": QUESTION}]
        )
        async with client.messages.stream(
            model="sim", max_tokens=9, messages=[{"role": "user", "content": QUESTION}]
        ) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        counted = await client.messages.count_tokens(model="sim", messages=[{"role": "user", "content": QUESTION}])
    assert whole.content[0].type == "text"
    assert (whole.content[0].text, whole.stop_reason) == (TEXT.text, "end_turn")
    assert text == expected({**ASK, "max_tokens": 9}).text
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 9)
    assert counted.input_tokens == TEXT.prompt_tokens


async def test_embeddings_are_the_same_for_the_same_text_and_near_for_texts_that_share_words() -> None:
    async with clients() as (client, _):
        texts = ["the river flows down", "the river flows down", "the river flows up", "Größe #7"]
        answer = await client.embeddings.create(model="sim", input=texts)
        floats = await client.embeddings.create(model="sim", input=texts, encoding_format="float", dimensions=8)
    first, second, near, far = (item.embedding for item in answer.data)
    assert first == second
    assert len(first) == 64
    product = [sum(a * b for a, b in zip(first, other, strict=True)) for other in (second, near, far)]
    assert product[0] == pytest.approx(1, abs=1e-4)
    assert product[0] > product[1] > 0.5 > product[2]
    assert len(floats.data[0].embedding) == 8


@given(cut=st.integers(0, len(TEXT.tokens)), limit=st.integers(1, 60))
def test_a_chat_is_continued_with_exactly_what_was_left(cut: int, limit: int) -> None:
    partial = "".join(TEXT.tokens[:cut])
    turns = [*ASK["messages"], {"role": "assistant", "content": partial}]
    rest = expected(
        {"messages": turns, "continue_final_message": True, "add_generation_prompt": False, "max_tokens": limit}
    )
    assert list(rest.tokens) == list(TEXT.tokens[cut : cut + limit]) or (rest.tokens, partial) == ([""], TEXT.text)


async def test_a_chat_is_continued_over_the_wire() -> None:
    partial = "".join(TEXT.tokens[:5])
    turns = [*ASK["messages"], {"role": "assistant", "content": partial}]
    goes_on = {"messages": turns, "continue_final_message": True, "add_generation_prompt": False}
    async with simulator() as sim, client_of(sim) as client:
        answer = await client.post(CHAT, json=goes_on)
        both = await client.post(CHAT, json={**goes_on, "add_generation_prompt": True})
    assert partial + answer.json()["choices"][0]["message"]["content"] == TEXT.text
    assert both.status_code == 400
    assert "not compatible" in both.json()["error"]["message"]


async def test_what_was_generated_is_tokenized_to_as_many_tokens() -> None:
    async with simulator() as sim, client_of(sim) as client:
        tokens = (await client.post("/tokenize", json={"prompt": TEXT.text, "return_token_strs": True})).json()
        prompt = (await client.post("/tokenize", json=ASK)).json()
        text = (await client.post("/detokenize", json={"tokens": tokens["tokens"]})).json()
    assert tokens["count"] == TEXT.completion_tokens - 1  # less the end
    assert tokens["token_strs"] == list(TEXT.tokens[:-1])
    assert prompt["count"] == TEXT.prompt_tokens
    assert prompt["max_model_len"] == 32768
    assert text == {"prompt": TEXT.text}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stop_string_ends_the_text_before_it(stream: bool) -> None:
    stop = TEXT.text[30:37]
    body = {**(STREAM if stream else ASK), "stop": ["not there", stop]}
    async with simulator() as sim, client_of(sim) as client:
        answer = await client.post(CHAT, json=body)
    if stream:
        choices = [document(event)["choices"] for event in sse.EventSplitter().feed(answer.content)[:-2]]
        text = "".join(choice["delta"]["content"] for (choice,) in choices)
        last = choices[-1][0]
    else:
        (last,) = answer.json()["choices"]
        text = last["message"]["content"]
    assert text == TEXT.text[: TEXT.text.index(stop)]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)


@given(stops=st.lists(st.text("aehrstn ", min_size=1, max_size=5), max_size=3))
def test_stop_strings_never_change_the_text_before_them(stops: list[str]) -> None:
    said = expected({**ASK, "stop": stops})
    ends = [TEXT.text.index(stop) for stop in stops if stop in TEXT.text]
    assert said.text == TEXT.text[: min(ends, default=None)]
    assert "".join(said.tokens) == said.text


REFUSED: list[tuple[str, dict[str, Any], int, str | None]] = [
    (CHAT, {**ASK, "model": "other"}, 404, "model"),
    (CHAT, {"model": "sim"}, 400, "body.messages"),
    (CHAT, {"messages": []}, 400, "messages"),
    (CHAT, {"messages": [3]}, 400, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": {}}]}, 400, "messages"),
    (CHAT, {**ASK, "max_tokens": -5}, 400, "max_tokens"),
    (CHAT, {**ASK, "max_tokens": "many"}, 400, "max_tokens"),
    (CHAT, {**ASK, "n": 10**9}, 400, "n"),
    (CHAT, {**ASK, "stop": 3}, 400, "stop"),
    (CHAT, {**ASK, "stream_options": {"include_usage": True}}, 400, "stream_options"),
    (CHAT, {"messages": [{"role": "user", "content": "a " * 40_000}]}, 400, "input_tokens"),
    ("/v1/completions", {"prompt": "a", "echo": True}, 400, "echo"),
    ("/v1/completions", {"prompt": {}}, 400, "prompt"),
    ("/v1/embeddings", {"input": []}, 400, "input"),
    ("/tokenize", {"prompt": 3}, 400, "prompt"),
    ("/detokenize", {"tokens": ["a"]}, 400, "tokens"),
]


@pytest.mark.parametrize(("path", "body", "status", "param"), REFUSED)
async def test_what_cannot_be_answered_is_refused_in_vllms_shape(
    path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    async with simulator() as sim, client_of(sim) as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (status, param)


@pytest.mark.parametrize("raw", [b"{bad", b"[]", b"\xff", b'{"messages": NaN}', b"[" * 20_000, b""])
async def test_a_body_that_is_no_request_is_refused(raw: bytes) -> None:
    async with simulator() as sim, client_of(sim) as client:
        for path in (CHAT, "/v1/messages", "/v1/embeddings", "/tokenize"):
            assert (await client.post(path, content=raw)).status_code == 400


async def test_the_other_routes_answer_as_vllms_do() -> None:
    async with simulator(model="mine", max_model_len=99) as sim, client_of(sim) as client:
        models = (await client.get("/v1/models")).json()
        assert [(model["id"], model["max_model_len"]) for model in models["data"]] == [("mine", 99)]
        health = await client.get("/health")
        assert (health.status_code, health.content) == (200, b"")
        assert (await client.get("/version")).json() == {"version": "0.32.0"}
        missing, wrong = await client.get("/nope"), await client.get(CHAT)
        assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
        assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})
        assert (await client.head("/health")).status_code == 405


async def test_faults_are_set_shown_and_taken_back_while_it_runs() -> None:
    async with simulator(Fault("hang")) as sim, client_of(sim) as client:
        assert [fault["kind"] for fault in (await client.get("/sim/faults")).json()] == ["hang"]
        set_faults = await client.put("/sim/faults", json=[{"kind": "status", "status": 503, "times": 1}])
        assert set_faults.status_code == 200
        assert [(await client.post(CHAT, json=ASK)).status_code for _ in range(2)] == [503, 200]
        (shown,) = (await client.get("/sim/faults")).json()
        assert (shown["status"], shown["struck"]) == (503, 1)
        assert (await client.delete("/sim/faults")).json() == [] == sim.faults
        assert (await client.put("/sim/faults", json=[{"kind": "refuse", "times": 1}])).status_code == 200


@pytest.mark.parametrize("faults", [{}, [3], [{"kind": "ctu"}], [{"kind": "cut", "aftr": 3}], [{"kind": "refuse"}]])
async def test_faults_that_cannot_be_understood_leave_those_that_are_set(faults: Any) -> None:
    async with simulator(Fault("cut")) as sim, client_of(sim) as client:
        answer = await client.put("/sim/faults", json=faults)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "faults"
        assert sim.faults == [Fault("cut")]


async def test_what_was_received_can_be_looked_at() -> None:
    async with simulator() as sim, client_of(sim) as client:
        await client.post(CHAT, json=ASK, headers={"X-Request-Id": "seven"})
        await client.get("/health")
    first, second = sim.requests
    assert (first.method, first.path, first.headers["x-request-id"], first.body) == ("POST", CHAT, "seven", ASK)
    assert (second.method, second.path) == ("GET", "/health")
    assert (sim.accepted, sim.connections) == (1, 0)


NAMES = (
    "model", "messages", "role", "content", "type", "text", "prompt", "input", "tokens", "n", "max_tokens", "stop",
    "stream", "stream_options", "include_usage", "continue_final_message", "add_generation_prompt", "system",
    "instructions", "tool_calls", "dimensions", "encoding_format", "echo", "ignore_eos", "max_completion_tokens",
)  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=8,
)


@given(
    path=st.sampled_from([path for path in sorted(KNOWN) if path != "/metrics"]),
    body=st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=8),
)
def test_no_json_is_answered_with_less_than_an_answer(path: str, body: dict[str, Any]) -> None:
    sim = Simulator(Model(max_model_len=64), Speed(), Scheduler(4, 0), PrefixCache(4))
    first = next(sim.answer(Received("POST", path, raw=json.dumps(body).encode())))
    assert isinstance(first, Head | Ticket) or (isinstance(first, Whole) and first.status in (200, 400, 404, 405))
