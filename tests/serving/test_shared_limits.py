"""Limits over a real Redis: the same as in one process, for several."""

import asyncio
import math
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from penstock.callers import Caller
from penstock.errors import OverBudget, Overloaded, PenstockError, RateLimited
from penstock.store import Store, opened
from penstock.tables import usage
from serving import shared_limits, spent
from serving.admission import Admission, Ticket
from serving.estimates import Estimate
from serving.shared_limits import LEASE_S
from tests.redis_server import RedisServer, running_redis
from tests.serving.redis_gateways import Gateway, empty_at, gateways, server_is_clean, three, used_before
from tests.serving.test_admission import NOON, Clock, config, key, settled

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(autouse=True)
def empty(server: RedisServer) -> None:
    empty_at(server)


async def test_three_gateways_let_no_more_requests_in_than_the_limit(server: RedisServer) -> None:
    async with three(server) as all:
        tickets = await asyncio.gather(*(one.enters(key(rpm=50)) for one in all for _ in range(60)))
        assert sum(ticket is not None for ticket in tickets) == 50


async def test_three_gateways_let_one_request_more_in_than_the_tokens_allow(server: RedisServer) -> None:
    async with three(server) as all:
        entering = (one.enters(key(tpm=1000), Estimate(10, 80)) for one in all for _ in range(20))
        tickets = [ticket for ticket in await asyncio.gather(*entering) if ticket]
        assert len(tickets) == 12  # eleven are 990
        for ticket in tickets:
            ticket.leave(20)
        for one in all:
            await one.written()
        assert await all[0].enters(key(tpm=241))
        assert not await all[1].enters(key(tpm=240))


async def test_three_gateways_run_no_more_at_once_than_the_limit(server: RedisServer) -> None:
    random = Random(1)
    async with three(server) as all:
        running = most = let_in = 0

        async def one(gateway: Gateway) -> None:
            nonlocal running, most, let_in
            for _ in range(20):
                ticket = await gateway.enters(key(concurrent=4))
                if ticket:
                    let_in += 1
                    running += 1
                    most = max(most, running)
                    await asyncio.sleep(random.uniform(0, 0.005))
                    running -= 1
                    ticket.leave(1)
                await asyncio.sleep(random.uniform(0, 0.005))

        await asyncio.gather(*(one(gateway) for gateway in all for _ in range(5)))
        assert most == 4
        assert let_in > 50


async def test_a_models_places_are_those_of_all_gateways(server: RedisServer) -> None:
    async with three(server, concurrent=3) as all:
        running = most = 0

        async def one(gateway: Gateway) -> None:
            nonlocal running, most
            for _ in range(5):
                ticket = await gateway.enter()
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.005)
                running -= 1
                ticket.leave(1)

        await asyncio.gather(*(one(gateway) for gateway in all for _ in range(4)))
        assert most == 3


async def test_redis_decides_as_one_process_does(server: RedisServer) -> None:
    """The same requests at the same moments, once here and once by Redis."""
    random = Random(7)
    for _ in range(6):
        empty_at(server)
        clock = Clock()
        clock.passed = 0.05  # in the middle of a slot
        quota: dict[str, Any] = {
            name: random.randint(1, most)
            for name, most in (("rpm", 30), ("tpm", 900), ("concurrent", 5), ("daily_tokens", 3000))
            if random.random() < 0.7
        }
        caller = key(f"k{random.random()}", **quota)
        model: dict[str, Any] = {"rpm": 40, "tpm": 2000}
        here = Admission(config(**model), steady=clock.steady, wall=clock.wall)
        there = Gateway(server, clock, **model)
        pairs: list[tuple[Ticket, Ticket]] = []
        outcomes = set()
        async with gateways(there), here:
            for _ in range(150):
                clock.passed += random.choice([0, 0.2, 1, 3, 12])
                there.shared.renew(there.of.live)
                await there.written()
                estimate = Estimate(random.randint(0, 50), random.randint(0, 200))
                said: list[Ticket | tuple[str, int | None]] = []
                for admission in (here, there.of):
                    try:
                        said.append(await admission.enter(caller, "m", estimate))
                    except PenstockError as error:
                        said.append((error.message, error.retry_after_s))
                if isinstance(said[0], Ticket) and isinstance(said[1], Ticket):
                    pairs.append((said[0], said[1]))
                    outcomes.add("in")
                else:
                    assert said[0] == said[1]
                    outcomes.add(str(said[0]))
                assert here.marks(caller) == there.of.marks(caller)
                while pairs and random.random() < 0.5:
                    tokens = random.randint(0, 250)
                    for ticket in pairs.pop(random.randrange(len(pairs))):
                        ticket.leave(tokens)
                await there.written()
        assert "in" in outcomes
        server_is_clean(server, caller)


async def test_what_runs_is_counted_by_all_as_it_comes(server: RedisServer) -> None:
    clock = Clock()
    first, second = Gateway(server, clock), Gateway(server, clock)
    caller = key(tpm=100)
    async with gateways(first, second):
        ticket = await first.enter(caller, Estimate(1, 10))
        ticket.progress = lambda: 120
        first.of._sweep()
        await first.written()
        assert not await second.enters(caller)
        clock.passed += 61  # the tokens that came are older than a minute, what is reserved is not
        second.shared.renew(second.of.live)
        first.of._sweep()
        await first.written()
        assert await second.enters(caller)
        ticket.leave(130)
        await first.written()
        await second.enters(caller)
        assert dict(second.of.marks(caller))[b"x-ratelimit-remaining-tokens"] == b"50"


async def test_of_a_gateway_that_is_killed_everything_is_free_when_its_leases_end(server: RedisServer) -> None:
    clock = Clock()
    killed, lives = Gateway(server, clock, concurrent=2), Gateway(server, clock, concurrent=2)
    caller = key(concurrent=2, tpm=25)
    async with gateways(killed, lives):
        await killed.enter(caller)
        await killed.enter(caller)
        killed.dies()
        assert not await lives.enters(caller)
        clock.passed += LEASE_S - 0.1
        assert not await lives.enters(caller)
        clock.passed += 0.2
        assert await lives.enters(caller)
        assert await lives.enters(key("other"))


async def test_what_lives_keeps_its_leases(server: RedisServer) -> None:
    clock = Clock()
    first, second = Gateway(server, clock), Gateway(server, clock)
    caller = key(concurrent=1)
    async with gateways(first, second):
        ticket = await first.enter(caller)
        for _ in range(30):
            clock.passed += 1
            first.of._sweep()
            await first.written()
            assert not await second.enters(caller)
        ticket.leave(1)
        await first.written()
        assert await second.enters(caller)


async def test_what_cannot_be_counted_takes_no_lease_and_no_count_of_others_with_it(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    first, second = Gateway(server, clock), Gateway(server, clock)

    def breaks() -> int:
        raise ValueError("no number")

    async with gateways(first, second):
        tickets = [await first.enter(key(f"k{number}", concurrent=1)) for number in range(20)]
        for number, ticket in enumerate(tickets):
            ticket.progress = breaks if number % 2 else lambda: 5
        for _ in range(10):
            clock.passed += 1
            first.of._sweep()
            await first.written()
        for number, ticket in enumerate(tickets):
            assert not await second.enters(ticket.caller)
            assert ticket.came == (0 if number % 2 else 5)
    assert caplog.text.count("what has come of a request cannot be counted before it ends") == 10
    assert caplog.text.count("ValueError: no number") == 10


async def test_a_waiting_gateway_has_its_turn_beside_one_that_asks_all_the_time(server: RedisServer) -> None:
    async with three(server, concurrent=1) as all:
        served: list[int] = []

        async def ask(number: int, times: int) -> None:
            for _ in range(times):
                ticket = await all[number].enter()
                served.append(number)
                await asyncio.sleep(0.01)
                ticket.leave(1)

        flood = [asyncio.create_task(ask(0, 6)) for _ in range(8)]
        await asyncio.sleep(0.1)
        before = len(served)
        await ask(1, 3)
        between = served[before:].count(0)
        assert between <= 6  # of 48: each turn of the one is followed by one of the other
        await asyncio.gather(*flood)
        assert served.count(0) == 48


async def test_the_urgent_of_one_gateway_run_before_the_others_rest(server: RedisServer) -> None:
    async with three(server, concurrent=1) as all:
        running = await all[2].enter()
        order: list[str] = []

        async def ask(gateway: Gateway, caller: Caller) -> None:
            ticket = await gateway.enter(caller)
            order.append(caller.name)
            ticket.leave(1)

        plain = [asyncio.create_task(ask(all[0], key(f"plain{number}"))) for number in range(3)]
        await asyncio.sleep(0.1)
        urgent = [asyncio.create_task(ask(all[1], key(f"urgent{number}", priority=1))) for number in range(3)]
        await asyncio.sleep(0.1)
        running.leave(1)
        await asyncio.gather(*plain, *urgent)
        assert order[:3] == ["urgent0", "urgent1", "urgent2"]


async def test_one_who_leaves_the_queue_leaves_nothing_behind(server: RedisServer) -> None:
    async with three(server, concurrent=1) as all:
        running = await all[0].enter()
        waiting = asyncio.create_task(all[1].enter(key(concurrent=1)))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.wait([waiting])
        running.leave(1)
        for one in all:
            await one.written()
        assert await asyncio.wait_for(all[2].enter(key(concurrent=1)), 1)


async def test_one_who_leaves_while_redis_is_asked_leaves_nothing_behind(server: RedisServer) -> None:
    random = Random(3)
    gateway = Gateway(server, concurrent=1)
    caller = key(concurrent=1)
    async with gateways(gateway):
        for _ in range(100):
            entering = asyncio.create_task(gateway.enter(caller))
            for _ in range(random.randrange(12)):
                await asyncio.sleep(0)
            if random.random() < 0.5:
                await asyncio.sleep(random.uniform(0, 0.001))
            entering.cancel()
            await asyncio.wait([entering])
            if not entering.cancelled():
                entering.result().leave(1)
            await gateway.written()
            (await asyncio.wait_for(gateway.enter(caller), 1)).leave(1)
            await gateway.written()


async def test_a_full_queue_books_nothing(server: RedisServer) -> None:
    async with three(server, concurrent=1, queue=0) as all:
        caller = key(concurrent=2, rpm=10)
        await all[0].enter(caller)
        for _ in range(5):
            with pytest.raises(Overloaded, match="queue is full"):
                await all[1].enter(caller)
        assert dict(all[1].of.marks(caller))[b"x-ratelimit-remaining-requests"] == b"9"


async def test_budgets_are_those_of_all_and_a_redis_that_was_emptied_asks_the_database(
    server: RedisServer, tmp_path: Path
) -> None:
    clock = Clock()
    caller = key(daily_tokens=1000, monthly_tokens=3000)
    async with used_before(tmp_path, _2026_11_01=1500, _2026_11_22=400) as store:
        first, second = (Gateway(server, clock, store=store) for _ in range(2))
        async with gateways(first, second):
            (await first.enter(caller)).leave(590)
            await first.written()
            (await second.enter(caller, Estimate(0, 5))).leave(10)
            await second.written()
            with pytest.raises(OverBudget, match="1000 tokens a day") as refused:
                await first.enter(caller)
            assert refused.value.retry_after_s == 12 * 3600
            clock.passed += 86400
            for _ in range(5):
                (await second.enter(caller)).leave(100)
                await second.written()
            with pytest.raises(OverBudget, match="3000 tokens a month"):
                await second.enter(caller)
            empty_at(server)
            assert await first.enters(caller)  # the ledger was told of none of it


@asynccontextmanager
async def many_used(database: str, keys: int) -> AsyncIterator[Store]:
    """Of each key `k0`, `k1` ... 100 tokens yesterday, and a number of its own today."""
    counts = dict.fromkeys(("requests", "cached_tokens", "completion_tokens", "cut", "abandoned", "estimated"), 0)
    rows = [
        {"key_id": f"k{number}", "tenant": "t", "name": "n", "model": "m", "day": day, "prompt_tokens": tokens} | counts
        for number in range(keys)
        for day, tokens in (("2026-11-21", 100), ("2026-11-22", 1 + number))
    ]
    async with opened(database) as store:
        async with store.begin() as connection:
            await connection.execute(sa.insert(usage), rows)
        yield store


async def test_many_keys_that_redis_does_not_know_are_looked_up_together(
    server: RedisServer, database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At midnight, or where Redis has come back empty."""
    monkeypatch.setattr(shared_limits, "PATIENCE_S", 10)
    monkeypatch.setattr(spent, "READ_WITHIN_S", 10)
    async with many_used(database, 500) as store:
        gateway = Gateway(server, Clock(), lost="closed", store=store)
        callers = [key(f"k{number}", daily_tokens=2 + number, monthly_tokens=200 + number) for number in range(499)]
        async with gateways(gateway):
            transactions = 0

            def begun(_: sa.Connection) -> None:
                nonlocal transactions
                transactions += 1

            sa.event.listen(store.engine.sync_engine, "begin", begun)
            tickets = await asyncio.gather(*(gateway.enter(caller, Estimate(0, 0)) for caller in callers))
            assert 2 <= transactions <= 2 * 6  # Redis says of a hundred at once that it does not know them
            before = transactions
            for ticket in tickets:
                ticket.leave(1)
            await gateway.written()
            for caller in callers[:20]:
                with pytest.raises(OverBudget, match="tokens a day"):
                    await gateway.enter(caller, Estimate(0, 0))
            with pytest.raises(OverBudget, match="600 tokens a month"):
                await gateway.enter(key("k499", monthly_tokens=600), Estimate(0, 0))
            await gateway.enter(key("new", daily_tokens=1), Estimate(0, 0))
            assert transactions == before + 4
        with redis.Redis.from_url(server.url) as client:
            used = [client.get(f"penstock:key:{{k{number}}}:2026-11-22") for number in range(499)]
        assert used == [b"%d" % (2 + number) for number in range(499)]
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]


async def test_what_keys_have_used_cannot_be_read_is_told_once(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_limits, "PATIENCE_S", 10)
    monkeypatch.setattr(spent, "READ_WITHIN_S", 0.2)
    async with many_used(f"sqlite:///{tmp_path}/p.db", 30) as store:
        gateway = Gateway(server, Clock(), store=store)
        async with gateways(gateway):
            with closing(sqlite3.connect(tmp_path / "p.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                for _ in range(3):
                    entering = (gateway.enter(key(f"k{number}", daily_tokens=1000)) for number in range(30))
                    await asyncio.gather(*entering)  # as without Redis
                other.execute("ROLLBACK")
            with pytest.raises(OverBudget, match="30 tokens a day"):
                await gateway.enter(key("k29", daily_tokens=30))
    told = [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "WARNING")]
    assert len(told) == 2, told
    assert told[0].startswith("what keys have used cannot be read; where Redis does not know it")
    assert told[1] == "what keys have used can be read again"


async def test_nothing_is_kept_for_ever(server: RedisServer) -> None:
    gateway = Gateway(server, concurrent=1)
    async with gateways(gateway):
        ticket = await gateway.enter(key(rpm=5, tpm=50, daily_tokens=5000))
        waiting = asyncio.create_task(gateway.enter())
        await asyncio.sleep(0.05)
        ticket.leave(5)
        (await waiting).leave(5)
        await gateway.written()
    with redis.Redis.from_url(server.url) as client:
        kept = {name: client.ttl(name) for name in server.names()}
    assert len(kept) > 5
    assert min(kept.values()) > 0, kept


async def test_limits_without_end_and_large_numbers(server: RedisServer) -> None:
    clock = Clock()
    gateway = Gateway(server, clock)
    caller = key(tpm=2**31 - 1, monthly_tokens=10**15)
    async with gateways(gateway):
        (await gateway.enter(caller, Estimate(10**6, 10**9))).leave(2**31)
        await gateway.written()
        with pytest.raises(RateLimited) as refused:
            await gateway.enter(caller)
        assert refused.value.retry_after_s == 61
        clock.passed += 61
        assert await gateway.enter(caller)
    assert math.isclose(clock.wall(), NOON + 61)
    await settled()
