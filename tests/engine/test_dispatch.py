"""Tries, hedges, continuations: what becomes of a request when replicas fail it, over real sockets."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from engine.affinity import hint_of
from engine.asked import Asked, DeadlineOver, Limits, Source
from engine.connection import Answer
from engine.dispatch import Dispatch
from engine.pool import Pool
from engine.reading import CHAT
from engine.replica import Replica
from engine.sim import Fault, Simulator, simulator
from penstock.config import Routing
from penstock.errors import EngineError, EngineTimeout, PenstockError
from tests.conftest import free_port
from tests.upstream import swallowing

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {"model": "sim", "messages": [{"role": "user", "content": "tell me"}], "max_tokens": 20}
STREAM = BODY | {"stream": True}


class Heard:
    """A receiver that keeps what it was given."""

    def __init__(self) -> None:
        self.source: Source | None = None
        self.data = b""

    def begin(self, data: bytes) -> None:
        self.data += data

    def more(self, data: bytes) -> None:
        self.data += data

    def end(self, data: bytes) -> None:
        self.data += data

    def used(self, usage: Mapping[str, Any] | None, texts: Sequence[Sequence[str]]) -> None: ...

    @property
    def text(self) -> str:
        payloads = [line[6:] for line in self.data.split(b"\n\n") if line.startswith(b"data: {")]
        deltas = [choice["delta"] for payload in payloads for choice in orjson.loads(payload)["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)


@asynccontextmanager
async def pool_before(sims: Sequence[Simulator], **routing: Any) -> AsyncIterator[Pool]:
    replicas = [Replica.at(f"e-{number}", sim.url) for number, sim in enumerate(sims)]
    for replica in replicas:
        replica.set_ready(True)
    try:
        yield Pool("e", replicas, 0, Routing(affinity="off", **routing))
    finally:
        for replica in replicas:
            replica.close()


async def asked_of(
    pool: Pool, body: dict[str, Any], *, limits: Limits | None = None, within_s: float | None = None
) -> tuple[Answer | None, Heard]:
    heard = Heard()
    asked = Asked(CHAT, body, hint=hint_of(body))
    if within_s:
        asked.deadline = asyncio.get_running_loop().time() + within_s
    answer = await Dispatch(pool, asked, heard, limits or Limits(), "m").run()
    return answer, heard


@pytest.mark.parametrize("kind", ["close_before_headers", "reset", "garbage", "http09", "empty", "html", "nan"])
async def test_a_replica_that_does_not_answer_properly_is_not_the_last_that_is_asked(kind: str) -> None:
    async with simulator(Fault(kind)) as bad, simulator() as good, pool_before([bad, good]) as pool:
        answer, _ = await asked_of(pool, BODY)
        assert answer
        assert orjson.loads(answer.body)["choices"][0]["message"]["content"] == good.expected(BODY).text
        assert len(bad.requests) == 1


async def test_a_stream_whose_head_does_not_come_is_asked_for_elsewhere() -> None:
    async with simulator(Fault("hang")) as bad, simulator() as good, pool_before([bad, good]) as pool:
        _, heard = await asked_of(pool, STREAM, limits=Limits(first_byte_s=0.3))
        assert heard.text == good.expected(STREAM).text


async def test_a_first_try_that_nobody_mends_leaves_nothing_running() -> None:
    async with simulator(Fault("reset")) as bad, pool_before([bad]) as pool:
        told: asyncio.Future[PenstockError | None] = asyncio.get_running_loop().create_future()
        dispatch = Dispatch(pool, Asked(CHAT, BODY, hint=hint_of(BODY)), Heard(), Limits(), "m")
        assert dispatch.start(lambda answer, error: told.set_result(error))
        assert isinstance(await told, EngineError)
        (replica,) = pool.replicas
        assert (pool.active, replica.outstanding, replica.load_tokens) == (0, 0, 0)


async def test_replicas_that_do_not_accept_connections_are_passed_by() -> None:
    async with simulator() as one, simulator() as two, simulator() as good:
        async with pool_before([one, two, good]) as pool:
            await one.listener.close()
            await two.listener.close()
            answer, _ = await asked_of(pool, BODY)
    assert answer


async def test_a_slow_beginning_is_hedged_and_the_slower_one_is_ended() -> None:
    async with (
        simulator(Fault("hang")) as slow,
        simulator() as quick,
        pool_before([slow, quick], hedge_after_s=0.1) as pool,
    ):
        _, heard = await asked_of(pool, STREAM)
        assert heard.text == quick.expected(STREAM).text
        async with asyncio.timeout(2):
            while slow.connections:
                await asyncio.sleep(0.01)
        assert [replica.outstanding for replica in pool.replicas] == [0, 0]
        assert all(replica.breaker.state == "closed" for replica in pool.replicas)


async def test_a_quick_beginning_is_not_hedged() -> None:
    async with simulator() as one, simulator() as two, pool_before([one, two], hedge_after_s=5) as pool:
        answer, _ = await asked_of(pool, BODY)
        assert answer
        assert one.started + two.started == 1


async def test_of_two_answers_at_the_same_time_one_is_heard() -> None:
    async with simulator(ttft_s=0.2) as one, simulator(ttft_s=0.2) as two:
        async with pool_before([one, two], hedge_after_s=0.01) as pool:
            for _ in range(5):
                _, heard = await asked_of(pool, STREAM)
                assert heard.text == one.expected(STREAM).text
                assert heard.data.count(b"[DONE]") == 1


@pytest.mark.parametrize("after", [1, 5, 19])
async def test_a_cut_stream_goes_on_elsewhere_to_the_same_text(after: int) -> None:
    async with simulator(Fault("cut", after=after)) as bad, simulator() as good, pool_before([bad, good]) as pool:
        _, heard = await asked_of(pool, STREAM)
        assert heard.text == good.expected(STREAM).text
        assert heard.data.endswith(b"data: [DONE]\n\n")
        assert pool.replicas[0].outstanding == 0


async def test_what_is_more_than_text_is_not_continued() -> None:
    body = STREAM | {"n": 2}
    async with simulator(Fault("cut", after=3)) as bad, simulator() as good, pool_before([bad, good]) as pool:
        with pytest.raises(EngineError):
            await asked_of(pool, body)
        assert not good.requests


async def test_a_hedge_never_turns_a_success_into_a_failure() -> None:
    async with simulator(ttft_s=0.05) as one, simulator(ttft_s=0.05) as two:
        async with pool_before([one, two], hedge_after_s=0.001) as pool:
            for _ in range(30):
                answer, _ = await asked_of(pool, BODY)
                assert answer
            assert pool.retrying == 0


async def test_a_deadline_far_away_leaves_the_stall_to_be_noticed() -> None:
    async with simulator(Fault("stall", after=3)) as bad, simulator() as good, pool_before([bad, good]) as pool:
        _, heard = await asked_of(pool, STREAM, limits=Limits(stall_s=0.2), within_s=60)
        assert heard.text == good.expected(STREAM).text


async def test_an_engine_that_breaks_off_while_it_computes_is_asked_twice_at_the_most() -> None:
    async with simulator() as sim, pool_before([sim]) as pool:
        await asked_of(pool, BODY)  # so that a connection is open
        sim.requests.clear()
        sim.faults.append(Fault("close_before_headers"))
        with pytest.raises(EngineError):
            await asked_of(pool, BODY)
        assert len(sim.requests) <= 3  # the first over the open connection says nothing of the engine


async def test_a_whole_answer_to_what_was_to_be_a_stream_is_none() -> None:
    async with simulator(Fault("html")) as sim, pool_before([sim]) as pool:
        with pytest.raises(EngineError):
            await asked_of(pool, STREAM)


async def test_the_deadline_ends_the_engines_work() -> None:
    async with simulator(ttft_s=30) as sim, pool_before([sim]) as pool:
        with pytest.raises(DeadlineOver):
            await asked_of(pool, BODY, within_s=0.2)
        async with asyncio.timeout(1):
            while sim.running:
                await asyncio.sleep(0.01)


async def test_a_stall_is_noticed_and_what_it_said_is_kept() -> None:
    async with simulator(Fault("stall", after=3)) as sim, pool_before([sim]) as pool:
        heard = Heard()
        dispatch = Dispatch(pool, Asked(CHAT, STREAM, hint=hint_of(STREAM)), heard, Limits(stall_s=0.2), "m")
        with pytest.raises(EngineTimeout):
            await dispatch.run()
        assert sim.expected(STREAM).text.startswith(heard.text)
        assert heard.text


async def test_an_engine_that_fails_everything_is_soon_left_alone() -> None:
    async with simulator(Fault("status", status=503)) as sim, pool_before([sim], breaker_open_s=30) as pool:
        for _ in range(50):
            with pytest.raises(EngineError) as caught:
                await asked_of(pool, BODY)
            assert caught.value.retry_after_s
        assert len(sim.requests) <= 5


async def test_a_replica_that_is_given_up_while_it_is_connected_to_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)  # a line that is kept keeps the error
    port = free_port()
    replica = Replica.at("e-0", f"http://127.0.0.1:{port}")
    replica.set_ready(True)
    with swallowing(port):
        asking = asyncio.create_task(asked_of(Pool("e", [replica], 0, Routing()), BODY))
        await asyncio.sleep(0.1)
        replica.ended("it answers no probe")
        await asyncio.wait([asking])
        assert isinstance(asking.exception(), EngineError)
    replica.close()
    del asking
    gc.collect()  # an error that nobody has looked at is told by the event loop, and fails the test


class Watching(Heard):
    """Notes how much of the answer has come, as the limits of a key are told while it runs."""

    came = 0

    def more(self, data: bytes) -> None:
        super().more(data)
        if self.source:
            self.came = self.source.came


async def test_what_is_thought_has_come_as_much_as_what_is_said() -> None:
    async with simulator(itl_s=0.005) as sim, pool_before([sim]) as pool:
        for body in (STREAM, STREAM | {"chat_template_kwargs": {"enable_thinking": True}}):
            heard = Watching()
            await Dispatch(pool, Asked(CHAT, body, hint=hint_of(body)), heard, Limits(), "m").run()
            assert (heard.text == "") == (body is not STREAM)
            assert heard.came > 5
