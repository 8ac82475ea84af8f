"""HTTP as the simulator speaks it: pipelines, expectations, upgrades, idle connections, sockets of both kinds."""

import asyncio
from pathlib import Path

import httpx2
import pytest

from engine.sim import Fault, expected, simulator
from tests.engine.sim.conftest import ASK, CHAT, STREAM, client_of, hear

pytestmark = pytest.mark.anyio

TEXT = expected(ASK)


async def test_a_unix_socket_serves_too(tmp_path: Path) -> None:
    socket = tmp_path / "sim.sock"
    async with simulator(uds=socket) as sim:
        assert sim.url == f"unix:{socket}"
        transport = httpx2.AsyncHTTPTransport(uds=str(socket))
        async with httpx2.AsyncClient(transport=transport, base_url="http://sim") as client:
            assert (await client.post(CHAT, json=ASK)).json()["choices"][0]["message"]["content"] == TEXT.text
    assert not socket.exists()


async def test_requests_sent_before_the_answer_are_answered_in_turn() -> None:
    async with simulator() as sim:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(sim.url.rpartition(":")[2]))
        writer.write(
            b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n" * 3 + b"GET /nope HTTP/1.1\r\nconnection: close\r\n\r\n"
        )
        data = await reader.read()
        writer.close()
    assert data.count(b"HTTP/1.1 200 OK") == 3
    assert data.index(b"HTTP/1.1 404") > data.rindex(b"HTTP/1.1 200")


async def test_a_body_that_waits_to_be_asked_for_is_asked_for() -> None:
    async with simulator() as sim:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(sim.url.rpartition(":")[2]))
        writer.write(b"POST /tokenize HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 14\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b'{"prompt":"a"}')
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        writer.close()


async def test_what_is_no_http_gets_400_and_a_closed_connection() -> None:
    async with simulator() as sim:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(sim.url.rpartition(":")[2]))
        writer.write(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 Bad Request")
        writer.close()


async def test_an_upgrade_is_declined_by_answering_in_http_1() -> None:
    async with simulator() as sim:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(sim.url.rpartition(":")[2]))
        asks = b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\r\n"
        for _ in range(2):
            writer.write(asks)
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 OK")
        writer.close()


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    async with simulator(Fault("stall", delay_s=0.15), keep_alive_s=0.05) as sim:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(sim.url.rpartition(":")[2]))
        assert await reader.read() == b""
        writer.close()
        assert (await hear(sim, STREAM)).data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_a_long_answer_leaves_others_their_turn() -> None:
    async with simulator(max_model_len=200_000) as sim, client_of(sim) as client:
        long = asyncio.create_task(client.post(CHAT, json={**ASK, "ignore_eos": True, "max_tokens": 100_000}))
        while not sim.running:
            await asyncio.sleep(0)
        await client.get("/health")
        assert not long.done()
        assert (await long).json()["usage"]["completion_tokens"] == 100_000
