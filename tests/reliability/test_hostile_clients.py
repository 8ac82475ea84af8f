"""What a client may send to hurt: every one gets a clear refusal soon, and the others are served."""

import asyncio
import json
import resource
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from engine.sim import simulator
from tests.reliability.client import CHAT, Caller
from tests.reliability.conftest import ASK, STREAM, Behind, Gateway, about, until

pytestmark = pytest.mark.anyio

SOON_S = 1.0
IDLE = 4000
SLOW = 300
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"


def with_field(name: str, value: str) -> bytes:
    """The request with a field whose value is written as it is."""
    return json.dumps(ASK).encode()[:-1] + f', "{name}": {value}}}'.encode()


HOSTILE: dict[str, bytes] = {
    "NaN": with_field("temperature", "NaN"),
    "infinite": with_field("temperature", "Infinity"),
    "1e999": with_field("temperature", "1e999"),
    "negative": with_field("max_tokens", "-5"),
    "5000 digits": with_field("max_tokens", "9" * 5000),
    "5000 digits of seed": with_field("seed", "9" * 5000),
    "5000 digits of a fraction": with_field("top_p", "0." + "9" * 5000 + "e9999"),
    "depth 20000": with_field("metadata", "[" * 20_000 + "]" * 20_000),
    "depth 20000 of objects": with_field("metadata", '{"a":' * 20_000 + "1" + "}" * 20_000),
    "unclosed": with_field("metadata", "[" * 20_000),
    "lone surrogate": with_field("user", '"\\ud800"'),
    "bad UTF-8": with_field("user", '"x"').replace(b'"x"', b'"\xff\xfe"'),
    "overlong UTF-8": with_field("user", '"x"').replace(b'"x"', b'"\xc0\xaf"'),
    "a billion choices": with_field("n", "1000000000"),
    "10000 stops": with_field("stop", json.dumps(["x"] * 10_000)),
    "a million wrong turns": json.dumps({"model": "sim", "messages": [0] * 1_000_000}).encode(),
    "a number as text": with_field("max_tokens", '"5"'),
    "a list": b"[]",
    "nothing": b"",
    "null": b"null",
    "a NUL": b'{"model":"sim\x00"}',
    "two documents": json.dumps(ASK).encode() * 2,
    "UTF-16": json.dumps(ASK).encode("utf-16"),
    "no turns": b'{"model":"sim","messages":[]}',
    "a name of a megabyte": json.dumps({**ASK, "model": "a" * 2**20}).encode(),
}
# Valid JSON that is odd: the engine gets exactly what was checked, on a line of its own making.
ODD: dict[str, bytes] = {
    "a key twice": with_field("temperature", '2, "temperature": 1'),
    "a schema with a slow pattern": with_field(
        "response_format",
        '{"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "string", "pattern": "(a+)+$"}}}',
    ),
    "a megabyte of spaces": json.dumps(ASK).encode() + b" " * 2**20,
}


async def test_hostile_bodies_are_refused_at_once_and_name_the_reason(before: Behind) -> None:
    async with simulator() as sim, before(sim) as gateway:
        for name, body in HOSTILE.items():
            began = time.monotonic()
            said = await gateway.ask(body)
            assert time.monotonic() - began < SOON_S, name
            assert said.status in (400, 404), name
            assert said.error, name
            assert said.error["type"] == "invalid_request_error"
            assert len(said.body) < 4096, name
        assert not sim.started


async def test_odd_bodies_reach_the_engine_as_they_were_checked(before: Behind) -> None:
    async with simulator() as sim, before(sim) as gateway:
        for name, body in ODD.items():
            began = time.monotonic()
            assert (await gateway.ask(body)).status == 200, name
            assert time.monotonic() - began < SOON_S, name
            assert sim.requests[-1].body == json.loads(body), name
            assert sim.requests[-1].raw.count(b'"temperature"') <= 1, name


@pytest.mark.parametrize("stream", [True, False])
async def test_who_leaves_frees_the_engine(before: Behind, stream: bool) -> None:
    async with simulator(itl_s=0.05, mean_tokens=1000) as sim, before(sim) as gateway:
        callers = [Caller(gateway.url) for _ in range(8)]
        asking = [asyncio.create_task(caller.ask({**ASK, "stream": stream})) for caller in callers]
        await until(lambda: sim.running == 8)
        for caller in callers:
            caller.leave()
        await until(lambda: not sim.running, within_s=1 if stream else 3)
        assert sim.aborted == 8
        assert await gateway.figure("penstock_requests_in_flight") == 1  # this one
        for end in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(end, ConnectionError)


@pytest.mark.parametrize("expects", [b"", b"expect: 100-continue\r\n"])
async def test_a_body_that_would_be_too_large_is_refused_before_it_comes(before: Behind, expects: bytes) -> None:
    async with simulator() as sim, before(sim) as gateway, Caller(gateway.url) as caller:
        said = await caller.say(HEAD + expects + b"content-length: %d\r\n\r\n" % (8 * 2**30))
    assert (said.status, said.error and said.error["code"]) == (413, "body_too_large")
    assert said.headers["connection"] == "close"


async def test_a_body_of_chunks_that_grows_too_large_is_refused_on_the_way(before: Behind) -> None:
    async with simulator() as sim, before(sim, max_body_bytes=2**20) as gateway, Caller(gateway.url) as caller:
        await caller.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(32):
            await caller.send(b"10000\r\n" + b" " * 65536 + b"\r\n")
        said = await caller.answer()
    assert said.status == 413


BEGINNINGS: dict[str, bytes] = {
    "nothing": b"",
    "line": b"POST /v1/chat/comp",
    "head": HEAD,
    "body": HEAD + b"content-length: 100\r\n\r\n{",
    "chunks": HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
}
MORE: dict[str, bytes] = {"line": b"x", "body": b" ", "chunks": b"1\r\n \r\n"}


@pytest.mark.parametrize("part", BEGINNINGS)
async def test_who_sends_slowly_is_not_waited_for(before: Behind, part: str) -> None:
    async with simulator() as sim, before(sim, receive_timeout_s=0.5) as gateway, AsyncExitStack() as open:
        slow = [await open.enter_async_context(Caller(gateway.url)) for _ in range(SLOW)]
        for caller in slow:
            await caller.send(BEGINNINGS[part])
        dripping = asyncio.create_task(drip(slow, MORE.get(part, b"")))
        others = await gateway.many(8, STREAM)
        assert all(said.done for said in others)
        async with asyncio.timeout(5):
            ends = await asyncio.gather(*(caller.until_closed() for caller in slow))
        dripping.cancel()
    assert all(end == b"" or end.startswith(b"HTTP/1.1 408 ") for end in ends)
    assert all(ends) == (part in ("body", "chunks"))


async def drip(callers: list[Caller], piece: bytes) -> None:
    while piece:
        await asyncio.sleep(0.1)
        for caller in callers:
            caller.more(piece)


@pytest.mark.parametrize("declared", [True, False])
async def test_a_client_that_sends_too_much_hears_why(before: Behind, declared: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(256):
            yield b" " * 2**16

    async with simulator() as sim, before(sim, max_body_bytes=2**20) as gateway:
        content = b" " * 2**24 if declared else pieces()
        answer = await gateway.client.post(CHAT, content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.fixture
def many_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * IDLE + 1000
    if before[1] != resource.RLIM_INFINITY and before[1] < wanted:
        pytest.skip(f"needs {wanted} open files, the limit is {before[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], wanted), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_files")
async def test_thousands_of_idle_connections_are_in_nobodys_way(before: Behind) -> None:
    async with simulator() as sim, before(sim) as gateway, AsyncExitStack() as open:
        alone_s = await median_s(gateway)
        idle = [await open.enter_async_context(Caller(gateway.url)) for _ in range(IDLE)]
        for start in range(0, IDLE, 200):
            await asyncio.gather(*(caller.send(b"") for caller in idle[start : start + 200]))
        among_s = await median_s(gateway)
        print(f"p50 alone {alone_s * 1000:.2f} ms, among {IDLE} idle connections {among_s * 1000:.2f} ms")


async def median_s(gateway: Gateway) -> float:
    """Of 100 requests, one after another."""
    took = []
    async with Caller(gateway.url) as caller:
        for number in range(100):
            began = time.perf_counter()
            assert (await caller.ask(about(number, ASK))).status == 200
            took.append(time.perf_counter() - began)
    return sorted(took)[50]


SMUGGLED = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
SMUGGLING: dict[str, bytes] = {
    "length and chunks": HEAD + b"content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks and length": HEAD + b"transfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": HEAD + b"content-length: 2\r\ncontent-length: 0\r\n\r\n" + SMUGGLED,
    "a length with a sign": HEAD + b"content-length: +2\r\n\r\n{}" + SMUGGLED,
    "a length of two numbers": HEAD + b"content-length: 2, 2\r\n\r\n{}" + SMUGGLED,
    "an odd encoding": HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked twice": HEAD + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a space before the colon": HEAD + b"content-length : 0\r\n\r\n" + SMUGGLED,
    "a folded line": HEAD + b"x: y\r\n transfer-encoding: chunked\r\n\r\n" + SMUGGLED,
    "a bare CR": HEAD + b"x: y\rtransfer-encoding: chunked\r\n\r\n" + SMUGGLED,
    "a bad size of a chunk": HEAD + b"transfer-encoding: chunked\r\n\r\n-1\r\n\r\n" + SMUGGLED,
    "a NUL in a header": HEAD + b"x: \x00\r\n\r\n" + SMUGGLED,
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


async def test_what_is_ambiguous_gets_one_400_and_nothing_of_it_is_served(before: Behind) -> None:
    async with simulator() as sim, before(sim) as gateway:
        for name, request in SMUGGLING.items():
            async with Caller(gateway.url) as caller:
                said = await caller.say(request)  # and nothing comes after it
            assert said.status == 400, name
            assert said.error, name
            assert said.headers["connection"] == "close", name
        assert not [request for request in sim.requests if request.method == "POST"]


HOSTS = ["a/../v1?x#", "127.0.0.1/v1/models?", "127.0.0.1#", "x@127.0.0.1", "127.0.0.1\\@x", "[::1", ""]


async def test_the_path_is_the_request_lines_whatever_the_host_says(before: Behind) -> None:
    async with simulator() as sim, before(sim, keys=["sk-0123456789abcdef"]) as gateway:
        for host in HOSTS:
            for path, statuses in (("/v1/models", {400, 401}), ("/metrics", {400, 401}), ("/health", {200, 400})):
                async with Caller(gateway.url) as caller:
                    said = await caller.say(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
                assert said.status in statuses, (host, path)


PATHS = """/v1/../metrics //metrics /metrics/ /health/../metrics /%6detrics /health?/../metrics /health;/metrics
/health%2f..%2fmetrics http://x/metrics /v1/chat/completions/../../../metrics""".split()


async def test_no_spelling_of_a_path_gets_around_the_key(before: Behind) -> None:
    async with simulator() as sim, before(sim, keys=["sk-0123456789abcdef"]) as gateway:
        for path in PATHS:
            async with Caller(gateway.url) as caller:
                said = await caller.say(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert said.status in (400, 401, 404) or said.json == {"status": "ok"}, path


async def test_a_client_that_offers_to_upgrade_is_answered_in_the_protocol_it_speaks(before: Behind) -> None:
    body = json.dumps(ASK).encode()
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    async with simulator() as sim, before(sim) as gateway, Caller(gateway.url) as caller:
        said = await caller.say(HEAD + offer + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert said.status == 200, said
        assert said.json["choices"][0]["message"]["content"] == sim.expected(ASK).text


async def test_after_a_declined_upgrade_the_connection_goes_on(before: Behind) -> None:
    body = json.dumps(ASK).encode()
    offer = b"connection: Upgrade\r\nupgrade: h2c\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:9], body[9:])) + b"0\r\n\r\n"
    async with simulator() as sim, before(sim) as gateway, Caller(gateway.url) as caller:
        for request in (
            HEAD + offer + b"transfer-encoding: chunked\r\n\r\n" + chunks,
            HEAD + b"content-length: %d\r\n\r\n" % len(body) + body,
            HEAD + offer + b"content-length: %d\r\n\r\n" % len(body) + body,
        ):
            for start in range(0, len(request), 100):
                await caller.send(request[start : start + 100])
                await asyncio.sleep(0.001)
            assert (await caller.answer()).status == 200
        assert (await caller.say(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n" + offer + b"\r\n")).status == 200
        assert (await caller.ask(ASK)).status == 200
    assert sim.started == 4
