"""The routes, the keys, and the shape of every refusal."""

import asyncio
import json
import uuid
from typing import Any

import pytest

from engine.scripted import Scripted
from penstock.errors import EngineError
from serving.routes import ROUTES
from tests.serving.conftest import Running

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
KEY = "sk-0123456789abcdef"


def ask(model: str = "s", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


def with_key(**gateway: Any) -> dict[str, Any]:
    return {"gateway": {"keys": [KEY], **gateway}}


@pytest.mark.parametrize("path", ["/", "/nope", "/docs", "/v1", "/collective_rpc", "/v1//models", "/é"])
async def test_what_is_no_route_is_a_404_in_openais_shape(gateway: Running, path: str) -> None:
    async with gateway() as client:
        answer = await client.post(path, json={})
    assert answer.status_code == 404
    assert answer.json()["error"] | {"message": ""} == {
        "message": "", "type": "invalid_request_error", "param": None, "code": "unknown_url",
    }  # fmt: skip


async def test_the_wrong_method_is_a_405(gateway: Running) -> None:
    async with gateway() as client:
        answer = await client.get(CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


async def test_an_unknown_model_names_the_nearest(gateway: Running) -> None:
    async with gateway({"handbook": Scripted()}) as client:
        answer = await client.post(CHAT, json=ask("handbok"))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "did you mean 'handbook'?" in error["message"]


async def test_models_are_listed_and_described_for_both_kinds_of_clients(gateway: Running) -> None:
    anthropic = {"anthropic-version": "2026-10-21"}
    async with gateway({"org/name": Scripted()}) as client:
        listed = (await client.get("/v1/models")).json()
        one = (await client.get("/v1/models/org/name")).json()
        missing = await client.get("/v1/models/absent")
        theirs = (await client.get("/v1/models", headers=anthropic)).json()
    assert [model["id"] for model in listed["data"]] == ["scripted", "org/name"]
    assert (one["id"], one["object"]) == ("org/name", "model")
    assert missing.json()["error"]["code"] == "model_not_found"
    assert (theirs["data"][1]["type"], theirs["last_id"]) == ("model", "org/name")


async def test_without_a_key_only_health_and_readiness_answer(gateway: Running) -> None:
    async with gateway(**with_key()) as client:
        codes = {path: (await client.request(route.method, path)).status_code for path, route in ROUTES.items()}
    assert {path for path, code in codes.items() if code != 401} == {"/health", "/ready"}


@pytest.mark.parametrize("header", [{"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}])
async def test_both_headers_bear_a_key(gateway: Running, header: dict[str, str]) -> None:
    async with gateway({"s": Scripted()}, **with_key()) as client:
        assert (await client.post(CHAT, json=ask(), headers=header)).status_code == 200


@pytest.mark.parametrize(
    "header", [{"authorization": f"Bearer {KEY}x"}, {"authorization": "Basic eDp5"}, {"x-api-key": ""}]
)
async def test_a_wrong_key_is_a_401_that_does_not_repeat_it(gateway: Running, header: dict[str, str]) -> None:
    async with gateway(**with_key()) as client:
        answer = await client.post(CHAT, json=ask(), headers=header)
        anthropics = await client.post("/v1/messages", json={}, headers=header)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert KEY not in answer.text
    assert anthropics.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "header", [{"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}, {"host": "[x"}]
)
async def test_without_keys_a_page_of_the_web_is_not_let_in(gateway: Running, header: dict[str, str]) -> None:
    async with gateway() as client:
        refused = await client.get("/v1/models", headers=header)
        local = await client.get("/v1/models", headers={"origin": "http://localhost:3000"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert local.status_code == 200


async def test_a_body_over_the_limit_is_refused_declared_or_not(gateway: Running) -> None:
    big = json.dumps(ask(user="x" * 5000)).encode()

    async def undeclared() -> Any:
        for start in range(0, len(big), 1000):
            yield big[start : start + 1000]

    async with gateway({"s": Scripted()}, gateway={"max_body_bytes": 4096}) as client:
        declared = await client.post(CHAT, content=big)
        chunked = await client.post(CHAT, content=undeclared())
    for answer in (declared, chunked):
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


async def test_a_harmless_request_id_is_kept_and_another_is_replaced(gateway: Running) -> None:
    async with gateway() as client:
        kept = await client.get("/health", headers={"x-request-id": "abc-1"})
        replaced = await client.get("/health", headers={"x-request-id": "a b\tc"})
    assert kept.headers["x-request-id"] == "abc-1"
    assert replaced.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("kind", [RuntimeError, TimeoutError, ConnectionResetError])
async def test_an_unexpected_error_is_a_500_in_shape_and_tells_nothing(gateway: Running, kind: type[Exception]) -> None:
    class Broken:
        async def __call__(self, request: Any, emit: Any) -> Any:
            raise kind("the secret of the house")

    async with gateway({"s": Broken()}) as client:
        answer = await client.post(CHAT, json=ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text


async def test_a_chat_streams_with_usage_and_one_done(gateway: Running) -> None:
    async with gateway({"s": Scripted(["one two three"])}) as client:
        answer = await client.post(CHAT, json=ask(stream=True, stream_options={"include_usage": True}))
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert data.count("[DONE]") == 1
    chunks = [json.loads(line) for line in data[:-1]]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == "one two three"
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == 3


async def test_a_chat_that_fails_halfway_ends_its_stream_with_an_error_event(gateway: Running) -> None:
    failing = Scripted(["one two three"], failure=EngineError("broke"), fail_after=2)
    async with gateway({"s": failing}) as client:
        streamed = await client.post(CHAT, json=ask(stream=True))
        plain = await client.post(CHAT, json=ask())
    assert "[DONE]" not in streamed.text
    assert json.loads(streamed.text.strip().split("data: ")[-1])["error"]["code"] == "engine_error"
    assert plain.status_code == 502


async def test_plain_completions_are_answered_by_a_chat_too(gateway: Running) -> None:
    async with gateway({"s": Scripted(["said {prompt}"])}) as client:
        whole = (await client.post("/v1/completions", json={"model": "s", "prompt": "this"})).json()
        streamed = await client.post("/v1/completions", json={"model": "s", "prompt": "this", "stream": True})
        listed = await client.post("/v1/completions", json={"model": "s", "prompt": ["a", "b"]})
    assert (whole["object"], whole["choices"][0]["text"]) == ("text_completion", "said this")
    assert streamed.text.count("[DONE]") == 1
    assert listed.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels_the_chat(gateway: Running, stream: bool) -> None:
    slow = Scripted(["word " * 1000], pace_s=0.05)
    async with gateway({"s": slow}) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.post(CHAT, json=ask(stream=stream))
        async with asyncio.timeout(1):
            while slow.running:
                await asyncio.sleep(0.01)
    assert slow.cancelled == 1


async def test_metrics_count_by_route_model_and_status(gateway: Running) -> None:
    name = f"counted-{uuid.uuid4()}"
    async with gateway({name: Scripted()}) as client:
        await client.post(CHAT, json=ask(name))
        text = (await client.get("/metrics")).text
    assert f'penstock_requests_total{{model="{name}",route="/v1/chat/completions",status="200"}} 1.0' in text


async def test_labels_stay_a_bounded_set_whatever_is_asked_for(gateway: Running) -> None:
    async with gateway() as client:
        for number in range(3):
            await client.get(f"/random-{number}")
            await client.get(f"/v1/models/random-{number}")
        text = (await client.get("/metrics")).text
    assert "random" not in text
