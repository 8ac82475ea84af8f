"""Requests that share a connection, byte by byte."""

import asyncio
from typing import Any

import pytest

from engine.scripted import Scripted
from tests.serving.conftest import Running

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("gateway", [True], indirect=True)]

CHAT = b'{"model": "s", "messages": [{"role": "user", "content": "hi"}]}'
STREAM = CHAT[:-1] + b', "stream": true}'


def post(body: bytes, path: bytes = b"/v1/chat/completions", **headers: str) -> bytes:
    lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
    return b"POST %b HTTP/1.1\r\nhost: localhost\r\n%bcontent-length: %d\r\n\r\n%b" % (path, lines, len(body), body)


async def said(client: Any, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Everything that comes back on one connection until it is closed."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(pause_s)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer


async def test_requests_sent_together_are_answered_in_their_order(gateway: Running) -> None:
    last = post(CHAT, connection="close")
    async with gateway({"s": Scripted(["one", "two", "three"])}) as client:
        answer = await said(client, post(CHAT) + b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" + post(CHAT) + last)
    assert answer.count(b"HTTP/1.1 200") == 4
    places = [answer.index(word) for word in (b'"one"', b'{"status":"ok"}', b'"two"', b'"three"')]
    assert places == sorted(places)


async def test_garbage_after_a_request_leaves_its_answer_whole(gateway: Running) -> None:
    async with gateway({"s": Scripted(["a b c d"], pace_s=0.05)}) as client:
        answer = await said(client, post(STREAM), b"\x00\x01 nonsense\r\n\r\n", pause_s=0.05)
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_a_query_does_not_change_the_way_a_request_goes(gateway: Running) -> None:
    async with gateway({"s": Scripted()}) as client:
        answer = await client.post("/v1/chat/completions?beta=true", content=CHAT)
    assert answer.status_code == 200


async def test_a_large_body_before_a_next_head_is_no_large_head(gateway: Running) -> None:
    large = CHAT[:-1] + b', "user": "' + b"x" * 200_000 + b'"}'
    async with gateway({"s": Scripted()}) as client:
        answer = await said(client, post(large) + post(CHAT, connection="close"))
    assert answer.count(b"HTTP/1.1 200") == 2


async def test_http_1_0_gets_an_answer_without_chunks_and_an_end(gateway: Running) -> None:
    request = post(STREAM).replace(b"HTTP/1.1", b"HTTP/1.0")
    async with gateway({"s": Scripted(["a b"])}) as client:
        answer = await said(client, request)
    assert b"[DONE]" in answer
