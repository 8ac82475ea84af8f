"""The relay against an engine whose every byte is the test's: nothing is ever cut short in silence."""

import asyncio
import json
from typing import Any

import pytest

from tests.serving.conftest import Running
from tests.upstream import Say, Upstream, answers, silent, streams, upstream

pytestmark = pytest.mark.anyio

ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**ASK, "stream": True}
CHAT = "/v1/chat/completions"


def chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "x", "choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


def whole(text: str = "hello") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"id": "x", "choices": [choice]}).encode()


def behind(server: Upstream, **limits: Any) -> dict[str, Any]:
    return {
        "engines": {"e": {"urls": [server.url], "probe": {"interval_s": 0.2, "timeout_s": 1}}},
        "models": {"m": {"engine": "e"}},
        "gateway": limits,
    }


def events(body: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in body.split(b"\n\n") if event]


async def test_a_whole_answer_passes_byte_for_byte(gateway: Running) -> None:
    body = whole().replace(b"{", b"{  ", 1).replace(b"0", b"0.0")
    async with upstream(answers(200, body)) as engine, gateway(**behind(engine)) as client:
        answer = await client.post(CHAT, json=ASK)
    assert (answer.status_code, answer.content) == (200, body)
    assert json.loads(engine.bodies[0]) == ASK


async def test_a_stream_passes_event_by_event_with_headers_that_keep_proxies_from_buffering(gateway: Running) -> None:
    said = [chunk("Grü"), chunk("ße 🌊"), chunk("", "stop"), b"data: [DONE]\n\n"]
    joined = b"".join(said)
    cuts = [joined[start : start + 7] for start in range(0, len(joined), 7)]
    async with upstream(streams(*cuts)) as engine, gateway(**behind(engine)) as client:
        answer = await client.post(CHAT, json=STREAM)
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.content == joined


async def test_each_piece_that_goes_out_is_whole_utf8(gateway: Running) -> None:
    joined = chunk("🌊" * 50) + b"data: [DONE]\n\n"
    cuts = [joined[start : start + 3] for start in range(0, len(joined), 3)]
    async with upstream(streams(*cuts, pace_s=0.001)) as engine, gateway(**behind(engine)) as client:
        async with client.stream("POST", CHAT, json=STREAM) as answer:
            pieces = [piece async for piece in answer.aiter_raw()]
    assert all(piece.decode() for piece in pieces)


@pytest.mark.parametrize("cut", [True, False])
async def test_a_stream_without_its_end_becomes_an_error_event_and_no_done(gateway: Running, cut: bool) -> None:
    async with upstream(streams(chunk("half"), cut=cut)) as engine, gateway(**behind(engine)) as client:
        answer = await client.post(CHAT, json=STREAM)
    last = json.loads(events(answer.content)[-1].removeprefix(b"data: "))
    assert last["error"]["code"] == "stream_interrupted"
    assert b"[DONE]" not in answer.content


async def test_an_error_event_inside_a_stream_is_put_into_openais_shape_and_ends_it(gateway: Running) -> None:
    dead = b'data: {"error":{"message":"EngineCore died","type":"InternalServerError","param":null,"code":500}}\n\n'
    said = streams(chunk("half"), dead, b"data: [DONE]\n\n")
    async with upstream(said) as engine, gateway(**behind(engine)) as client:
        answer = await client.post(CHAT, json=STREAM)
    error = json.loads(events(answer.content)[-1].removeprefix(b"data: "))["error"]
    assert error == {"message": "EngineCore died", "type": "server_error", "param": None, "code": "engine_error"}
    assert b"[DONE]" not in answer.content


async def test_an_error_before_the_first_event_is_a_status_not_a_stream(gateway: Running) -> None:
    refused = b'data: {"error":{"message":"bad schema","type":"BadRequestError","code":400}}\n\n'
    async with upstream(streams(refused)) as engine, gateway(**behind(engine)) as client:
        answer = await client.post(CHAT, json=STREAM)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_text_that_looks_like_an_error_is_no_error(gateway: Running) -> None:
    said = [chunk('{"error": "quoted"}', "stop"), b"data: [DONE]\n\n"]
    async with upstream(streams(*said)) as engine, gateway(**behind(engine)) as client:
        answer = await client.post(CHAT, json=STREAM)
    assert answer.content == b"".join(said)


async def test_nothing_after_done_is_passed_on(gateway: Running) -> None:
    said = streams(chunk("x", "stop"), b"data: [DONE]\n\n" + chunk("late") + b"data: [DONE]\n\n")
    async with upstream(said) as engine, gateway(**behind(engine)) as client:
        answer = await client.post(CHAT, json=STREAM)
    assert answer.content == chunk("x", "stop") + b"data: [DONE]\n\n"


async def test_a_stream_that_stalls_ends_in_an_error_event(gateway: Running) -> None:
    async with upstream(streams(chunk("half"), hang=True)) as engine:
        async with gateway(**behind(engine, stall_timeout_s=0.3)) as client:
            answer = await client.post(CHAT, json=STREAM)
    assert json.loads(events(answer.content)[-1].removeprefix(b"data: "))["error"]["code"] == "engine_timeout"


@pytest.mark.parametrize(("body", "say"), [(STREAM, streams(hang=True)), (ASK, silent)])
async def test_an_engine_that_never_begins_is_a_timeout(gateway: Running, body: dict[str, Any], say: Say) -> None:
    async with upstream(say) as engine:
        async with gateway(**behind(engine, first_token_timeout_s=0.3)) as client:
            answer = await client.post(CHAT, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "engine_timeout")


async def test_a_client_that_leaves_a_stream_ends_the_generation(gateway: Running) -> None:
    async with upstream(streams(chunk("a"), hang=True)) as engine, gateway(**behind(engine)) as client:
        async with client.stream("POST", CHAT, json=STREAM) as answer:
            await anext(answer.aiter_raw())
        async with asyncio.timeout(1):
            await engine.closed.wait()


async def test_a_client_that_leaves_a_plain_request_ends_the_generation(gateway: Running) -> None:
    async with upstream(silent) as engine, gateway(**behind(engine)) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.post(CHAT, json=ASK)
        async with asyncio.timeout(1):
            await engine.closed.wait()


async def test_a_body_cut_short_is_never_passed_as_a_success(gateway: Running) -> None:
    async def say(writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")

    async with upstream(say) as engine, gateway(**behind(engine)) as client:
        answer = await client.post(CHAT, json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_error")


async def test_a_compressing_engine_is_asked_not_to(gateway: Running) -> None:
    async with upstream(answers(200, whole())) as engine, gateway(**behind(engine)) as client:
        await client.post(CHAT, json=ASK)
    assert b"accept-encoding: identity" in engine.heads[0].lower()


async def test_a_client_that_does_not_read_loses_its_place(gateway: Running) -> None:
    said = [chunk("x" * 100_000) for _ in range(300)]
    async with upstream(streams(*said, hang=True)) as engine:
        async with gateway(**behind(engine, stall_timeout_s=0.5)) as client:
            async with client.stream("POST", CHAT, json=STREAM):
                async with asyncio.timeout(5):
                    await engine.closed.wait()


async def test_a_heartbeat_is_no_first_event(gateway: Running) -> None:
    refused = b'data: {"error":{"message":"bad schema","type":"BadRequestError","code":400}}\n\n'
    async with upstream(streams(b": ping\n\n", refused)) as engine, gateway(**behind(engine)) as client:
        answer = await client.post(CHAT, json=STREAM)
    assert answer.status_code == 400


async def test_what_fails_before_the_first_byte_is_tried_once_more(gateway: Running) -> None:
    tries = 0

    async def say(writer: Any) -> None:
        nonlocal tries
        tries += 1
        await (answers(500, b"{}") if tries == 1 else answers(200, whole("second")))(writer)

    async with upstream(say) as engine, gateway(**behind(engine)) as client:
        answer = await client.post(CHAT, json=ASK)
    assert (answer.status_code, answer.content, tries) == (200, whole("second"), 2)


async def test_the_callers_fault_is_not_tried_again(gateway: Running) -> None:
    long = b'{"error":{"message":"too long","type":"BadRequestError","param":"input_tokens","code":400}}'
    async with upstream(answers(400, long)) as engine, gateway(**behind(engine)) as client:
        answer = await client.post(CHAT, json=ASK)
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert len(engine.bodies) == 1


async def test_retry_after_passes(gateway: Running) -> None:
    async with upstream(answers(429, b"{}", b"retry-after: 9\r\n")) as engine, gateway(**behind(engine)) as client:
        answer = await client.post(CHAT, json=ASK)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "9")


async def test_a_route_that_the_engine_lacks_is_told_as_such(gateway: Running) -> None:
    async with upstream(answers(404, b'{"detail":"Not Found"}')) as engine, gateway(**behind(engine)) as client:
        answer = await client.post("/v1/embeddings", json={"model": "m", "input": "x"})
    assert answer.status_code == 400
    assert "does not serve /v1/embeddings" in answer.json()["error"]["message"]


async def test_the_engine_is_asked_by_the_name_it_knows(gateway: Running) -> None:
    async with upstream(answers(200, whole())) as engine:
        tree = behind(engine)
        tree["models"] = {"ours": {"engine": "e"}}
        async with gateway(**tree) as client:
            await client.post(CHAT, json={**ASK, "model": "ours"})
    assert json.loads(engine.bodies[0])["model"] == "m"


async def test_keys_and_cookies_of_the_caller_do_not_reach_the_engine(gateway: Running) -> None:
    async with upstream(answers(200, whole())) as engine, gateway(**behind(engine)) as client:
        await client.post(CHAT, json=ASK, headers={"authorization": "Bearer sk-secret", "cookie": "a=b"})
    assert b"sk-secret" not in engine.heads[0]
    assert b"cookie" not in engine.heads[0].lower()


async def test_anthropic_streams_end_with_message_stop_and_errors_are_anthropics(gateway: Running) -> None:
    first = b'event: message_start\ndata: {"type":"message_start"}\n\n'
    text = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"a"}}\n\n'
    stop = b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n'
    last = stop + b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    ask = {"model": "m", "max_tokens": 5, "messages": ASK["messages"], "stream": True}
    async with upstream(streams(first, text, last, b"data: [DONE]\n\n")) as engine, gateway(**behind(engine)) as client:
        answer = await client.post("/v1/messages", json=ask)
    assert answer.content == first + text + last
    async with upstream(streams(first, text, cut=True)) as engine, gateway(**behind(engine)) as client:
        answer = await client.post("/v1/messages", json=ask)
    name, data = events(answer.content)[-1].strip().split(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: "))["error"]["type"] == "api_error"
    assert answer.headers["request-id"] == answer.headers["x-request-id"]


async def test_a_responses_stream_ends_with_the_event_that_says_how(gateway: Running) -> None:
    said = b'event: response.completed\ndata: {"type":"response.completed","response":{"error":null}}\n\n'
    async with upstream(streams(said)) as engine, gateway(**behind(engine)) as client:
        answer = await client.post("/v1/responses", json={"model": "m", "input": "x", "stream": True})
    assert answer.content == said


async def test_what_nobody_of_an_engine_can_answer_its_fallback_does(gateway: Running) -> None:
    async with upstream(answers(500, b"{}")) as broken, upstream(answers(200, whole("spare"))) as spare:
        tree = behind(broken)
        tree["engines"]["s"] = behind(spare)["engines"]["e"] | {"model": "m"}
        tree["models"] = {"m": {"engine": "e", "fallback": "spare"}, "spare": {"engine": "s"}}
        async with gateway(**tree) as client:
            answer = await client.post(CHAT, json=ASK)
            refused = await client.post(CHAT, json={**ASK, "model": "spare"})
    assert (answer.status_code, answer.content) == (200, whole("spare"))
    assert answer.headers["x-penstock-fallback"] == "spare"
    assert "x-penstock-fallback" not in refused.headers


async def test_what_the_engine_is_sent_is_what_was_checked(gateway: Running) -> None:
    twice = b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 5, "max_tokens": 6}'
    async with upstream(answers(200, whole())) as engine, gateway(**behind(engine)) as client:
        await client.post(CHAT, content=twice)
    assert engine.bodies[0].count(b"max_tokens") == 1
