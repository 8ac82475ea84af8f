"""Limits when Redis hangs, goes, refuses, comes back with or without what it knew."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest
import redis
import sqlalchemy as sa

from penstock import metrics
from penstock.callers import Caller
from penstock.errors import OverBudget, Overloaded, RateLimited
from penstock.store import Store
from penstock.tables import usage
from serving import admission, shared_limits
from serving.admission import Ticket
from serving.estimates import Estimate
from serving.shared_limits import LEASE_S
from tests.redis_server import RedisServer, running_redis
from tests.serving.redis_gateways import Gateway, empty_at, gateways, server_is_clean, used_before
from tests.serving.test_admission import SOME, Clock, key

pytestmark = pytest.mark.anyio

Break = Callable[[redis.Redis], object]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(autouse=True)
def empty(server: RedisServer) -> None:
    empty_at(server)


async def test_a_start_without_redis_forgets_no_budget(server: RedisServer, tmp_path: Path) -> None:
    clock = Clock()
    async with used_before(tmp_path, _2026_11_01=1500, _2026_11_22=400) as store:
        server.stop()
        try:
            gateway = Gateway(server, clock, store=store)
            async with gateways(gateway):
                assert not gateway.shared.is_up
                with pytest.raises(OverBudget, match="400 tokens a day"):
                    await gateway.enter(key(daily_tokens=400))
                with pytest.raises(OverBudget, match="1900 tokens a month"):
                    await gateway.enter(key(monthly_tokens=1900))
                (await gateway.enter(key(daily_tokens=401, monthly_tokens=1901))).leave(1)
                with pytest.raises(OverBudget, match="401 tokens a day"):
                    await gateway.enter(key(daily_tokens=401))
        finally:
            server.start()


async def test_while_redis_is_gone_budgets_go_by_what_the_ledger_has_of_all(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "READ_EVERY_S", 0.05)
    clock = Clock()
    caller = key(daily_tokens=1000)

    async def others_used(store: Store, tokens: int) -> None:
        async with store.begin() as connection:
            await connection.execute(sa.update(usage).values(prompt_tokens=tokens))

    async with used_before(tmp_path, _2026_11_22=100) as store:
        gateway = Gateway(server, clock, store=store)
        async with gateways(gateway):
            (await gateway.enter(caller)).leave(10)
            await others_used(store, 500)
            server.stop()
            try:
                while gateway.shared.is_up:
                    await gateway.enters(caller)
                async with asyncio.timeout(5):
                    while gateway.of._account(caller).budget.in_day(gateway.of.now().calendar) != 500:
                        await asyncio.sleep(0.01)
                    (await gateway.enter(caller)).leave(100)
                    await others_used(store, 300)  # what is known here is more
                    await asyncio.sleep(0.15)
                    assert gateway.of._account(caller).budget.in_day(gateway.of.now().calendar) == 600
                    await others_used(store, 1000)
                    while await gateway.enters(caller):
                        await asyncio.sleep(0.01)
            finally:
                server.start()


async def test_while_redis_is_gone_each_goes_by_what_it_knows_itself(server: RedisServer) -> None:
    gateway = Gateway(server)
    caller = key(rpm=5)
    async with gateways(gateway):
        for _ in range(3):
            (await gateway.enter(caller)).leave(1)
        server.stop()
        try:
            for _ in range(2):
                began = time.perf_counter()
                await gateway.enter(caller)
                assert time.perf_counter() - began < 0.1
            with pytest.raises(RateLimited):
                await gateway.enter(caller)
            assert not gateway.shared.is_up
            with pytest.raises(RateLimited):  # and without a task
                gateway.of.try_enter(caller, "m", SOME)
            assert gateway.of.try_enter(key("other", rpm=1), "m", SOME)
        finally:
            server.start()
        async with asyncio.timeout(5):
            while not gateway.shared.is_up:
                await asyncio.sleep(0.05)
        assert gateway.of.try_enter(caller, "m", SOME) is None
        assert await gateway.enter(caller)


async def test_a_redis_that_comes_back_empty_learns_what_runs(server: RedisServer) -> None:
    first, second = Gateway(server), Gateway(server)
    caller = key(concurrent=1)
    async with gateways(first, second):
        ticket = await first.enter(caller)
        server.stop()
        server.start()
        async with asyncio.timeout(5):
            while await second.enters(caller):  # until the next renewal
                await asyncio.sleep(0.1)
                second.of.live.pop().leave(0)
                await second.written()
        ticket.leave(1)
        await first.written()
        assert await second.enters(caller)


async def test_closed_means_that_nobody_with_limits_is_let_in(server: RedisServer) -> None:
    gateway = Gateway(server, lost="closed", concurrent=1)
    async with gateways(gateway):
        running = await gateway.enter()
        waiting = asyncio.create_task(gateway.enter())
        await asyncio.sleep(0.05)
        server.stop()
        try:
            with pytest.raises(Overloaded, match="limits cannot be checked") as refused:
                await gateway.enter(key(rpm=5))
            assert refused.value.retry_after_s == 1
            with pytest.raises(Overloaded, match="limits cannot be checked"):
                await waiting
            assert gateway.of.try_enter(key(rpm=5), "m", SOME) is None
            running.leave(1)
        finally:
            server.start()
        async with asyncio.timeout(5):
            while not await gateway.enters(key(rpm=5)):
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("lost", ["open", "closed"])
async def test_a_redis_that_hangs_costs_fifty_milliseconds_and_soon_nothing(
    server: RedisServer, lost: Literal["open", "closed"]
) -> None:
    gateway = Gateway(server, lost=lost)
    async with gateways(gateway):
        await gateway.enter(key(rpm=1000))
        took = []
        with server.frozen():
            for _ in range(20):
                began = time.perf_counter()
                await gateway.enters(key(rpm=1000))
                took.append(time.perf_counter() - began)
        assert max(took) < 0.1
        assert sum(one > 0.01 for one in took) <= 3
        async with asyncio.timeout(5):
            while not gateway.shared.is_up:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        (lambda client: client.set("penstock:key:{k}", "x"), "WRONGTYPE"),
        (lambda client: client.rpush("penstock:key:{k}:requests", "x"), "ResponseError"),  # the script's own
    ],
)
async def test_an_account_that_is_broken_in_redis_is_told_and_takes_nobody_with_it(
    server: RedisServer, broken: Break, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = refusals(kind)
    gateway, closed = Gateway(server), Gateway(server, lost="closed")
    broke, other = key(rpm=40), key("other", rpm=150)
    async with gateways(gateway, closed):
        running = await gateway.enter(broke)
        with redis.Redis.from_url(server.url) as client:
            for name in client.scan_iter("penstock:key:{k}*"):
                client.delete(name)
            broken(client)
        for _ in range(100):
            if ticket := await gateway.enters(broke):
                ticket.leave(5)
            assert await gateway.enter(other)
            with pytest.raises(Overloaded, match="limits cannot be checked"):
                await closed.enter(broke)
        gateway.of._sweep()
        running.leave(1)
        for one in (gateway, closed):
            await one.written()
            assert one.shared.is_up
            assert not one.shared._unsettled
        with pytest.raises(RateLimited, match="40 requests"):
            await gateway.enter(broke)
        assert refusals(kind) > before + 100
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 2, told  # each gateway once
    assert "Redis refuses what it is asked for limits: ResponseError: " in told[0]
    assert "{k}" not in caplog.text


def replica(client: redis.Redis, on: bool) -> None:
    client.replicaof(*("127.0.0.1", "1") if on else ("NO", "ONE"))


def no_leave(client: redis.Redis, on: bool) -> None:
    client.acl_setuser("default", enabled=True, commands=["-evalsha" if on else "+evalsha"])


@pytest.mark.parametrize("lost", ["open", "closed"])
@pytest.mark.parametrize(("breaks", "kind"), [(replica, "ReadOnlyError"), (no_leave, "NoPermissionError")])
async def test_a_redis_that_refuses_is_as_one_that_is_gone_and_its_reason_is_told(
    server: RedisServer,
    breaks: Callable[[redis.Redis, bool], None],
    kind: str,
    lost: Literal["open", "closed"],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = refusals(kind)
    gateway = Gateway(server, lost=lost)
    caller = key(rpm=5)
    async with gateways(gateway):
        (await gateway.enter(caller)).leave(1)
        await gateway.written()
        with redis.Redis.from_url(server.url) as client:
            breaks(client, True)
            try:
                for _ in range(10):
                    with suppress(RateLimited):
                        await (gateway.enter(caller) if lost == "open" else refused(gateway, caller))
                assert not gateway.shared.is_up
                if lost == "open":
                    with pytest.raises(RateLimited, match="5 requests"):
                        await gateway.enter(caller)
                await asyncio.sleep(2.2)  # two probes
                assert not gateway.shared.is_up
                assert refusals(kind) >= before + 4
            finally:
                breaks(client, False)
        async with asyncio.timeout(5):
            while not gateway.shared.is_up:
                await asyncio.sleep(0.05)
        assert await gateway.enters(key("other", rpm=5))
    told = [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "WARNING")]
    assert len(told) == 3, told
    assert told[0].startswith(f"Redis refuses what it is asked for limits: {kind}: ")
    assert told[1].startswith(f"Redis refuses ({kind}): limits ")
    assert told[2] == "Redis answers again: limits are shared"


async def test_a_redis_without_memory_for_budgets_says_so_and_each_goes_by_its_own(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, closed = Gateway(server), Gateway(server, lost="closed")
    caller = key(daily_tokens=100)
    async with gateways(gateway, closed):
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", "1")
            try:
                (await gateway.enter(caller)).leave(100)
                for _ in range(20):
                    with pytest.raises(OverBudget):
                        await gateway.enter(caller)
                    await refused(closed, caller)
            finally:
                client.config_set("maxmemory", "0")
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [line.partition("Error: ")[0] for line in told] == [
        "Redis refuses what it is asked for limits: OutOfMemory"
    ] * 2


async def refused(gateway: Gateway, caller: Caller) -> None:
    with pytest.raises(Overloaded, match="limits cannot be checked"):
        await gateway.enter(caller)


def refusals(kind: str) -> float:
    return metrics.redis_refusals.values.get((kind,), 0)


async def test_those_who_wait_go_on_in_this_process_when_redis_goes(server: RedisServer) -> None:
    gateway = Gateway(server, concurrent=1)
    async with gateways(gateway):
        running = await gateway.enter()
        waiting = asyncio.create_task(gateway.enter())
        await asyncio.sleep(0.05)
        server.stop()
        try:
            await asyncio.sleep(0.3)
            assert not waiting.done()
            running.leave(1)
            await asyncio.wait_for(waiting, 1)
        finally:
            server.start()


async def test_what_was_settled_without_an_answer_is_not_counted_twice(server: RedisServer) -> None:
    clock = Clock()
    gateway = Gateway(server, clock)
    caller = key(tpm=1000)
    async with gateways(gateway):
        ticket = await gateway.enter(caller)
        booked = {**gateway.shared._entry(ticket), "tokens": 100, "number": 1}
        unknown = {**booked, "ticket": "unknown", "tokens": 50, "number": 2}
        renewal = {**booked, "came": 100, "reserved": 20}
        for _ in range(2):
            await gateway.shared._call("settle", {"tickets": [booked, unknown]})
        assert await gateway.shared._call("renew", {"tickets": [renewal], "after": 0}) == 0  # sent before, come late
        await gateway.enter(caller, Estimate(0, 0))
        assert dict(gateway.of.marks(caller))[b"x-ratelimit-remaining-tokens"] == b"850"
        gateway.of.live.clear()


def used_today(server: RedisServer, caller: Caller) -> int:
    with redis.Redis.from_url(server.url) as client:
        (day,) = client.keys(f"penstock:key:{{{caller.id}}}:????-??-??")
        return int(client.get(day) or 0)


@asynccontextmanager
async def without_redis(server: RedisServer, gateway: Gateway) -> AsyncIterator[None]:
    """It is silent, and nobody asks it any more; until the block has ended and it is asked again."""
    with server.frozen():
        while gateway.shared.is_up:
            (await gateway.enter(key("other", rpm=1000))).leave(0)
        yield
    async with asyncio.timeout(10):
        while not gateway.shared.is_up:
            await asyncio.sleep(0.05)
    await gateway.written()


async def test_what_was_used_while_redis_was_silent_is_in_its_budgets_afterwards(server: RedisServer) -> None:
    gateway = Gateway(server)
    caller = key(daily_tokens=10**6, monthly_tokens=10**7)

    def comes(ticket: Ticket, tokens: int) -> None:
        ticket.progress = lambda: tokens
        gateway.of._sweep()

    async with gateways(gateway):
        before, ends_at_once = await gateway.enter(caller), await gateway.enter(caller)
        comes(before, 100)
        await gateway.written()
        assert used_today(server, caller) == 100
        with server.frozen():  # this one's end is sent, and Redis finds it when it wakes up
            ends_at_once.leave(20)
            while gateway.shared.is_up:
                await gateway.enter(caller, Estimate(0, 0))
            during, outlasts = await gateway.enter(caller), await gateway.enter(caller)
            comes(during, 40_000)
            comes(before, 3_000)
            comes(outlasts, 5_000)
            during.leave(50_000)
            before.leave(3_200)
        async with asyncio.timeout(10):
            while not gateway.shared.is_up:
                await asyncio.sleep(0.05)
        await gateway.written()
        assert used_today(server, caller) == 20 + 50_000 + 3_200 + 5_000
        comes(outlasts, 6_000)
        outlasts.leave(7_000)
        for ticket in [*gateway.of.live]:
            ticket.leave(0)
        await gateway.written()
        assert used_today(server, caller) == 20 + 50_000 + 3_200 + 7_000
        assert gateway.of._account(caller).budget.in_day(gateway.of.now().calendar) == used_today(server, caller)
    server_is_clean(server, caller)


async def test_what_a_lease_that_ended_was_counted_for_is_not_counted_again(server: RedisServer) -> None:
    """As of a gateway that the network has cut off for longer than a lease."""
    clock = Clock()
    cut_off, other = Gateway(server, clock), Gateway(server, clock)
    caller = key(daily_tokens=1000)
    async with gateways(cut_off, other):
        settled, goes_on = await cut_off.enter(caller), await cut_off.enter(caller)
        settled.progress = goes_on.progress = lambda: 100
        cut_off.of._sweep()
        await cut_off.written()
        clock.passed += LEASE_S + 1
        await other.enter(caller)
        assert used_today(server, caller) == 200
        settled.leave(130)
        goes_on.progress = lambda: 150
        cut_off.of._sweep()
        await cut_off.written()
        assert used_today(server, caller) == 280
        goes_on.leave(160)
        await cut_off.written()
        assert used_today(server, caller) == 290


async def test_a_minutes_limit_has_nothing_of_an_outage_that_lasted_longer(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "MINUTE_S", 0.1)
    gateway = Gateway(server)
    caller = key(tpm=1000, daily_tokens=10**6)
    async with gateways(gateway):
        (await gateway.enter(caller)).leave(1)
        await gateway.written()
        async with without_redis(server, gateway):
            (await gateway.enter(caller)).leave(998)
            await asyncio.sleep(0.2)
        assert used_today(server, caller) == 999
        (await gateway.enter(caller, Estimate(0, 0))).leave(0)
        assert dict(gateway.of.marks(caller))[b"x-ratelimit-remaining-tokens"] == b"999"


async def test_what_is_too_much_to_be_told_later_is_told_once_in_the_log_and_counted(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_limits, "MOST_UNSETTLED", 10)
    gateway = Gateway(server)
    caller = key(daily_tokens=10**6)
    left_out = metrics.redis_left_out.values.get((), 0)
    async with gateways(gateway):
        (await gateway.enter(caller)).leave(1)
        await gateway.written()
        async with without_redis(server, gateway):
            waiting = len(gateway.shared._unsettled)
            for _ in range(30):
                (await gateway.enter(caller)).leave(100)
        assert metrics.redis_left_out.values[()] == left_out + 20 + waiting
        assert used_today(server, caller) == 1 + 100 * (10 - waiting)
    told = [record.getMessage() for record in caplog.records if "wait for Redis" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("10 ended requests wait for Redis")
