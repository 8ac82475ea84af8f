"""Many large answers at once: bounded in sum, whether engines are slow to say them or clients to read them."""

import asyncio
from typing import Any

import httpx2
import orjson
import pytest

from tests.reliability.client import Caller, post
from tests.serving.conftest import Running, run_gateway
from tests.upstream import upstream, whole

pytestmark = pytest.mark.anyio

EMBEDDINGS = "/v1/embeddings"
BODY = {"model": "m", "input": "a"}
HALF = 600_000


def answer(size_bytes: int) -> bytes:
    document = {"object": "list", "data": [{"index": 0, "embedding": "x" * size_bytes}], "usage": {"prompt_tokens": 1}}
    return whole(200, orjson.dumps(document))


def behind(url: str, most_bytes: int) -> dict[str, Any]:
    gateway = {"max_answers_bytes": most_bytes}
    return {"engines": {"e": {"urls": [url]}}, "models": {"m": {"engine": "e"}}, "gateway": gateway}


async def test_what_there_is_no_room_for_is_a_503_and_what_was_there_before_goes_on(gateway: Running) -> None:
    written, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def say(writer: asyncio.StreamWriter) -> None:
        """Most of it at once, the rest when the test says so."""
        data = answer(HALF)
        writer.write(data[: HALF * 9 // 10])
        await writer.drain()
        written.release()
        await go_on.wait()
        writer.write(data[HALF * 9 // 10 :])

    async with upstream(say) as engine, gateway(**behind(engine.url, 2 * HALF + 10_000)) as client:
        first = [asyncio.create_task(client.post(EMBEDDINGS, json=BODY)) for _ in range(2)]
        for _ in first:
            await written.acquire()
        await asyncio.sleep(0.2)  # it has been read here, too
        refused = await client.post(EMBEDDINGS, json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert "max_answers_bytes" in refused.json()["error"]["message"]
        assert len(engine.bodies) == 3  # no other try was made
        go_on.set()
        assert [(await asking).status_code for asking in first] == [200, 200]
        assert [(await client.post(EMBEDDINGS, json=BODY)).status_code for _ in range(4)] == [200] * 4


async def test_an_answer_whose_client_leaves_takes_no_room_any_more(gateway: Running) -> None:
    hold = asyncio.Event()

    async def say(writer: asyncio.StreamWriter) -> None:
        data = answer(HALF)
        writer.write(data[:HALF])
        await hold.wait()
        writer.write(data[HALF:])

    async with upstream(say) as engine, gateway(**behind(engine.url, 2 * HALF + 10_000)) as client:
        for number in range(4):
            asking = asyncio.create_task(client.post(EMBEDDINGS, json=BODY))
            async with asyncio.timeout(5):
                while len(engine.bodies) <= number:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            asking.cancel()
            await asyncio.wait([asking])
            await asyncio.sleep(0.1)
        hold.set()
        assert (await client.post(EMBEDDINGS, json=BODY)).status_code == 200


async def test_answers_that_nobody_reads_take_room_until_their_clients_leave(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    large = 24 * 2**20  # more than the kernel takes in

    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(answer(large))

    async def ask(client: httpx2.AsyncClient) -> int:
        return (await client.post(EMBEDDINGS, json=BODY)).status_code

    async with upstream(say) as engine, run_gateway(hot=True, **behind(engine.url, large * 3 // 2)) as client:
        async with Caller(str(client.base_url), buffer_bytes=4096) as sleeper:
            await sleeper.send(post(BODY, EMBEDDINGS))
            await sleeper.head()
            assert await ask(client) == 503
        async with asyncio.timeout(5):
            while await ask(client) != 200:
                await asyncio.sleep(0.05)
        async with Caller(str(client.base_url)) as reader:
            for _ in range(3):
                assert (await reader.ask(BODY, EMBEDDINGS)).status == 200
