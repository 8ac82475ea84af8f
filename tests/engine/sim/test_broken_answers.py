"""Every fault of any answer, provoked over a socket, for whole answers and for streams."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import httptools
import pytest

from engine.sim import KINDS, Fault, simulator
from engine.sim.broken_answers import ANSWERS, PAGE
from engine.sim.simulator import Simulator
from tests.engine.sim.conftest import ASK, STREAM, Heard, hear

pytestmark = pytest.mark.anyio

Check = Callable[[Heard, Heard], bool]


def is_http(data: bytes) -> bool:
    """As llhttp understands it."""
    try:
        httptools.HttpResponseParser(object()).feed_data(data)
    except httptools.HttpParserError:
        return False
    return True


def counts(heard: Heard) -> set[int]:
    return {value for value in heard.json["usage"].values() if isinstance(value, int)}


def is_error(heard: Heard, status: int) -> bool:
    return heard.head.startswith(b"HTTP/1.1 %d " % status) and heard.json["error"]["code"] == status


# Of a whole answer and of a stream alike; the second argument is the same answer unharmed.
BOTH: list[tuple[Fault, Check]] = [
    (Fault("refuse"), lambda heard, clean: (heard.data, heard.end) == (b"", "reset")),
    (Fault("hang"), lambda heard, clean: (heard.data, heard.end) == (b"", "open")),
    (Fault("close_before_headers"), lambda heard, clean: (heard.data, heard.end) == (b"", "closed")),
    (Fault("reset"), lambda heard, clean: (heard.data, heard.end) == (b"", "reset")),
    (Fault("garbage"), lambda heard, clean: len(heard.data) == 400 and not is_http(heard.data)),
    (Fault("http09"), lambda heard, clean: b"HTTP/1.1" not in heard.data and heard.end == "closed"),
    (Fault("status", status=503), lambda heard, clean: is_error(heard, 503) and b"retry-after" not in heard.head),
    (
        Fault("status", status=429, retry_after_s=7),
        lambda heard, clean: is_error(heard, 429) and b"\r\nretry-after: 7" in heard.head,
    ),
    (Fault("status", status=400), lambda heard, clean: is_error(heard, 400)),
    (Fault("status", html=True), lambda heard, clean: heard.body == PAGE and b" 500 " in heard.head),
    (Fault("health_lies"), lambda heard, clean: is_error(heard, 500)),
    (Fault("html"), lambda heard, clean: heard.body == PAGE and b" 200 OK" in heard.head),
    (Fault("empty"), lambda heard, clean: (heard.body, heard.length) == (b"", 0) and b" 200 OK" in heard.head),
    (
        Fault("huge_headers"),
        lambda heard, clean: len(heard.head) > 200 * 1024 and len(heard.body) == len(clean.body),
    ),
    (
        Fault("connection_close"),
        lambda heard, clean: (
            b"\r\nconnection: close" in heard.head and len(heard.body) == len(clean.body) and heard.end == "closed"
        ),
    ),
    (
        Fault("split"),
        lambda heard, clean: len(heard.data) == len(clean.data) and len(heard.pieces) > len(clean.data) / 2,
    ),
    (
        Fault("informational"),
        lambda heard, clean: (
            heard.data.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n")
            and len(heard.data.split(b"\r\n\r\n", 2)[2]) == len(clean.data)
        ),
    ),
    (
        Fault("te_and_cl"),
        lambda heard, clean: (
            b"\r\ncontent-length: " in heard.head
            and b"\r\ntransfer-encoding: chunked" in heard.head
            and not is_http(heard.data)
        ),
    ),
    (
        Fault("slow_head", delay_s=0.1),
        lambda heard, clean: len(heard.data) == len(clean.data) and len(heard.pieces) > 2,
    ),
    (Fault("usage_lies", value=10**9), lambda heard, clean: b'"total_tokens":1000000000' in heard.body),
    (Fault("usage_lies"), lambda heard, clean: b'"total_tokens":-5,"completion_tokens":-5' in heard.body),
]
WHOLE: list[tuple[Fault, Check]] = [
    (Fault("usage_lies"), lambda heard, clean: counts(heard) == {-5} and heard.complete),
    (Fault("nan"), lambda heard, clean: b"NaN" in heard.body and heard.complete),
    (
        Fault("truncated"),
        lambda heard, clean: (
            len(heard.body) == len(clean.body) // 2 and heard.length == clean.length and heard.end == "closed"
        ),
    ),
    (
        Fault("wrong_length"),
        lambda heard, clean: (len(heard.body), heard.length) == (clean.length, len(clean.body) + 10),
    ),
    (
        Fault("wrong_length", by=-10),
        lambda heard, clean: (len(heard.body), heard.length) == (clean.length, len(clean.body) - 10),
    ),
    (
        Fault("huge_body", size_mb=3),
        lambda heard, clean: (len(heard.body), heard.length) == (3 * 2**20, 3 * 2**20) and bool(heard.json["choices"]),
    ),
]
STREAMED: list[tuple[Fault, Check]] = [
    (
        Fault("huge_body", size_mb=3),
        lambda heard, clean: b"".join(heard.events).count(b"\n\n") == 1 and len(b"".join(heard.events)) == 3 * 2**20,
    )
]


def named(cases: list[tuple[Fault, Check]]) -> list[str]:
    return [fault.kind for fault, _ in cases]


async def strike(sim: Simulator, fault: Fault, body: Mapping[str, Any], check: Check) -> None:
    clean = await hear(sim, body)
    sim.faults.append(fault)
    heard = await hear(sim, body)
    assert clean.complete
    assert check(heard, clean), heard
    assert fault.struck == 1
    fault.struck = 0


@pytest.mark.parametrize(("fault", "check"), BOTH + WHOLE, ids=named(BOTH + WHOLE))
async def test_a_whole_answer_goes_wrong_as_it_was_told(fault: Fault, check: Check) -> None:
    async with simulator() as sim:
        await strike(sim, fault, ASK, check)


@pytest.mark.parametrize(("fault", "check"), BOTH + STREAMED, ids=named(BOTH + STREAMED))
async def test_a_stream_goes_wrong_as_it_was_told_before_it_begins(fault: Fault, check: Check) -> None:
    async with simulator() as sim:
        await strike(sim, fault, STREAM, check)


def test_every_fault_of_an_answer_stands_in_a_table() -> None:
    tried = {fault.kind for fault, _ in BOTH + WHOLE + STREAMED}
    assert tried == {twist.__name__ for twist in ANSWERS} - {"health_flaps"} | {"refuse", "health_lies", "nan"}
    assert {kind for kind, what in KINDS.items() if what.of != "stream"} == tried | {"health_flaps"}


async def test_health_flaps_while_generation_is_well() -> None:
    async with simulator(Fault("health_flaps", period_s=0.05)) as sim:
        seen: set[bytes] = set()
        async with asyncio.timeout(10):
            while len(seen) < 2:
                seen.add((await hear(sim, None, "/health", "GET")).head[:12])
        assert seen == {b"HTTP/1.1 200", b"HTTP/1.1 503"}
        assert (await hear(sim, ASK)).json["choices"]


async def test_health_lies_while_generation_fails() -> None:
    async with simulator(Fault("health_lies")) as sim:
        for path in ("/health", "/v1/models"):
            assert (await hear(sim, None, path, "GET")).head.startswith(b"HTTP/1.1 200 OK")
        assert is_error(await hear(sim, ASK), 500)


async def test_a_slow_head_takes_its_time() -> None:
    async with simulator(Fault("slow_head", delay_s=0.25)) as sim:
        begun_s = time.monotonic()
        await hear(sim, ASK)
    assert time.monotonic() - begun_s > 0.24


async def test_an_engine_that_is_killed_is_refused_until_it_is_back() -> None:
    async with simulator(Fault("stall")) as sim:
        stalled = asyncio.create_task(hear(sim, STREAM))
        while not sim.running:
            await asyncio.sleep(0.01)
        await sim.listener.close()
        assert (await stalled).end == "reset"
        with pytest.raises(ConnectionRefusedError):
            await hear(sim, ASK)
        await sim.listener.open()
        assert (await hear(sim, ASK)).complete
