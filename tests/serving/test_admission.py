"""Limits of keys and models in one process, by a clock of the test's; and the queue, by the event loop's own."""

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from engine.affinity import hint_of
from engine.asked import DeadlineOver
from engine.reading import CHAT, RESPONSES
from penstock.callers import LOCAL, Caller, Quota
from penstock.config import Config, Model
from penstock.errors import OverBudget, Overloaded, RateLimited, StartError
from penstock.store import opened
from penstock.tables import usage
from serving.admission import Admission, Ticket, check_shared
from serving.estimates import MOST_RESERVED_TOKENS, Estimate, estimate
from serving.limit_headers import as_duration

pytestmark = pytest.mark.anyio

NOON = 1795348800.0  # 2026-11-22 12:00:00 UTC
SOME = Estimate(10, 10)


class Clock:
    """Both clocks of an admission."""

    def __init__(self) -> None:
        self.passed = 0.0

    def steady(self) -> float:
        return 1000 + self.passed

    def wall(self) -> float:
        return NOON + self.passed


def config(workers: int = 1, redis: str | None = None, **model: Any) -> Config:
    return Config(
        engines={"e": {"kind": "scripted"}},
        models={"m": {"engine": "e", **model}},
        gateway={"workers": workers},
        state={"redis": redis},
    )


def key(name: str = "k", priority: int = 0, tenant: str | None = None, **quota: Any) -> Caller:
    return Caller(name, name, tenant or name, quota=Quota(**quota), priority=priority)


class Limits:
    """An admission of one model, `m`, and its clock."""

    def __init__(self, **model: Any) -> None:
        self.clock = Clock()
        self.of = Admission(config(**model), steady=self.clock.steady, wall=self.clock.wall)

    def enter(self, caller: Caller = LOCAL, tokens: Estimate = SOME) -> Ticket:
        ticket = self.of.try_enter(caller, "m", tokens)
        assert ticket, "it would have to wait"
        return ticket

    def waiting(self, caller: Caller = LOCAL, deadline: float = math.inf) -> asyncio.Task[Ticket]:
        return asyncio.create_task(self.of.enter(caller, "m", SOME, deadline))

    async def __aenter__(self) -> "Limits":
        await self.of.__aenter__()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.of.__aexit__(None, None, None)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_nobody_has_limited_is_not_looked_at() -> None:
    async with Limits() as limits:
        assert not limits.of.limits(LOCAL, "m")
        assert limits.of.limits(key(rpm=1), "m")
    async with Limits(rpm=1) as limits:
        assert limits.of.limits(LOCAL, "m")


async def test_requests_a_minute_are_counted_in_any_minute() -> None:
    async with Limits() as limits:
        caller = key(rpm=3)
        for _ in range(3):
            limits.enter(caller).leave(5)
            limits.clock.passed += 10
        with pytest.raises(RateLimited, match="3 requests a minute") as refused:
            limits.enter(caller)
        assert refused.value.retry_after_s == 31  # the first was 30 s ago
        limits.clock.passed += 30.2
        limits.enter(caller)
        with pytest.raises(RateLimited):
            limits.enter(caller)


async def test_a_refused_request_does_not_count() -> None:
    async with Limits() as limits:
        caller = key(rpm=1)
        limits.enter(caller)
        for _ in range(30):
            limits.clock.passed += 2
            with pytest.raises(RateLimited):
                limits.enter(caller)
        limits.clock.passed += 0.2
        limits.enter(caller)


async def test_tokens_are_reserved_counted_as_they_come_and_settled_in_the_end() -> None:
    async with Limits() as limits:
        caller = key(tpm=100)
        account = limits.of._account(caller)
        ticket = limits.enter(caller, Estimate(10, 50))
        assert account.reserved == 60
        ticket.count(20)
        assert (account.reserved, account.tokens.total(1000)) == (40, 20)
        ticket.count(80)  # more than was reserved
        assert (account.reserved, account.tokens.total(1000)) == (10, 80)
        ticket.count(60)  # as after a stream went on elsewhere
        assert account.tokens.total(1000) == 80
        ticket.leave(95)
        assert (account.reserved, account.tokens.total(1000), account.running) == (0, 95, 0)


async def test_at_most_one_request_more_than_the_tokens_allow_is_under_way() -> None:
    async with Limits() as limits:
        caller = key(tpm=100)
        tickets = [limits.enter(caller, Estimate(10, 30)) for _ in range(3)]
        with pytest.raises(RateLimited, match="100 tokens a minute"):
            limits.enter(caller, Estimate(1, 1))
        tickets[0].leave(10)
        limits.enter(caller, Estimate(10, 30))


async def test_nobody_having_counted_what_came_and_the_prompt_count() -> None:
    async with Limits() as limits:
        caller = key(tpm=100)
        ticket = limits.enter(caller, Estimate(10, 30))
        ticket.count(7)
        ticket.leave(None)
        assert limits.of._account(caller).tokens.total(1000) == 17


async def test_one_key_may_have_so_many_at_once() -> None:
    async with Limits() as limits:
        caller = key(concurrent=2)
        first, _ = limits.enter(caller), limits.enter(caller)
        with pytest.raises(RateLimited, match="2 requests at once"):
            limits.enter(caller)
        limits.clock.passed += 8
        first.leave(5)
        limits.enter(caller)
        with pytest.raises(RateLimited) as refused:
            limits.enter(caller)
        assert refused.value.retry_after_s == 4  # what one takes, and there are two


async def test_the_budget_of_a_day_is_there_again_at_midnight_utc() -> None:
    async with Limits() as limits:
        caller = key(daily_tokens=100)
        limits.enter(caller).leave(100)
        with pytest.raises(OverBudget) as refused:
            limits.enter(caller)
        assert (refused.value.code, refused.value.retry_after_s) == ("insufficient_quota", 12 * 3600)
        limits.clock.passed += 12 * 3600
        limits.enter(caller)


async def test_the_budget_of_a_month_is_not() -> None:
    async with Limits() as limits:
        caller = key(monthly_tokens=100)
        limits.enter(caller).leave(100)
        limits.clock.passed += 86400
        with pytest.raises(OverBudget) as refused:
            limits.enter(caller)
        assert refused.value.retry_after_s == int(7.5 * 86400)


async def test_a_restart_forgets_no_budget(database: str) -> None:
    async with opened(database) as store:
        rows = {"2026-10-31": 1, "2026-11-01": 10, "2026-11-22": 100, "2026-11-23": 1000}
        counts = dict.fromkeys(("requests", "cached_tokens", "completion_tokens", "cut", "abandoned", "estimated"), 0)
        async with store.begin() as connection:
            for model in ("m", "n"):
                for day, tokens in rows.items():
                    row = {"key_id": "k", "tenant": "k", "name": "k", "model": model, "day": day}
                    await connection.execute(sa.insert(usage).values(**row, **counts | {"prompt_tokens": tokens}))
        limits = Limits()
        limits.of.store = store
        async with limits:
            budget, calendar = limits.of._account(key()).budget, limits.of.now().calendar
            assert (budget.in_day(calendar), budget.in_month(calendar)) == (200, 2220)
            with pytest.raises(OverBudget):
                limits.enter(key(daily_tokens=200))
            limits.enter(key(daily_tokens=201))


async def test_a_models_limits_are_those_of_all_its_callers() -> None:
    async with Limits(rpm=2, tpm=1000) as limits:
        limits.enter(key("a", rpm=10))
        limits.enter()
        with pytest.raises(Overloaded, match="m takes 2 requests a minute") as refused:
            limits.enter(key("b", rpm=10))
        assert (refused.value.status, refused.value.retry_after_s) == (503, 61)


async def test_a_key_that_is_refused_by_the_model_has_not_used_its_own_limit() -> None:
    async with Limits(rpm=1) as limits:
        caller = key(rpm=2)
        limits.enter(caller)
        with pytest.raises(Overloaded):
            limits.enter(caller)
        assert limits.of._account(caller).requests.total(1000) == 1


async def test_limits_that_change_hold_at_once() -> None:
    async with Limits(rpm=1) as limits:
        limits.enter()
        limits.of.change({"m": Model(engine="e", rpm=2)})
        limits.enter()
        with pytest.raises(Overloaded):
            limits.enter()
        limits.of.change({"m": Model(engine="e")})
        assert not limits.of.limits(LOCAL, "m")
        limits.enter(key(rpm=1))
        limits.enter(key(rpm=2))
        with pytest.raises(RateLimited):
            limits.enter(key(rpm=2))


async def test_those_who_wait_when_a_limit_goes_run() -> None:
    async with Limits(concurrent=1) as limits:
        limits.enter()
        waiting = limits.waiting()
        await settled()
        limits.of.change({"m": Model(engine="e")})
        assert await waiting


async def test_a_place_that_is_left_is_the_next_ones() -> None:
    async with Limits(concurrent=1) as limits:
        running = limits.enter()
        assert limits.of.try_enter(LOCAL, "m", SOME) is None
        first, second = limits.waiting(), limits.waiting()
        await settled()
        assert not first.done()
        running.leave(5)
        (await first).leave(5)
        (await second).leave(5)
        limits.enter()


async def test_nobody_overtakes_those_who_wait() -> None:
    async with Limits(concurrent=1) as limits:
        running, waiting = limits.enter(), limits.waiting()
        await settled()
        running.leave(5)
        assert limits.of.try_enter(LOCAL, "m", SOME) is None
        await waiting


async def test_the_urgent_run_before_the_rest() -> None:
    async with Limits(concurrent=1) as limits:
        running = limits.enter()
        order: list[str] = []

        async def one(caller: Caller) -> None:
            ticket = await limits.of.enter(caller, "m", SOME)
            order.append(caller.name)
            ticket.leave(5)

        callers = [key("a"), key("b", priority=1), key("c"), key("d", priority=2)]
        tasks = [asyncio.create_task(one(caller)) for caller in callers]
        await settled()
        running.leave(5)
        await asyncio.gather(*tasks)
        assert order == ["d", "b", "a", "c"]


async def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    async with Limits(concurrent=1, queue=2) as limits:
        running = limits.enter()
        limits.clock.passed += 4
        running.leave(5)  # one takes 4 s
        limits.enter()
        waiting = [limits.waiting(), limits.waiting()]
        await settled()
        with pytest.raises(Overloaded, match="queue is full") as refused:
            await limits.waiting()
        assert refused.value.retry_after_s == 12
        for one in waiting:
            one.cancel()


async def test_nobody_waits_longer_than_the_queue_allows() -> None:
    async with Limits(concurrent=1, queue_s=0.05) as limits:
        limits.enter()
        caller = key(concurrent=1)
        with pytest.raises(Overloaded, match="no place became free in time"):
            await limits.waiting(caller)
        assert len(limits.of.lines["m"].queue) == limits.of._account(caller).running == 0


async def test_one_who_leaves_the_queue_gives_up_its_place_at_once() -> None:
    async with Limits(concurrent=1, queue=1) as limits:
        running = limits.enter()
        leaving = limits.waiting(key(concurrent=1))
        await settled()
        leaving.cancel()
        await settled()
        staying = limits.waiting(key(concurrent=1))
        await settled()
        assert not staying.done()
        running.leave(5)
        await staying


async def test_one_who_leaves_as_its_place_comes_passes_it_on() -> None:
    async with Limits(concurrent=1) as limits:
        running = limits.enter()
        leaving, staying = limits.waiting(), limits.waiting()
        await settled()
        running.leave(5)
        leaving.cancel()
        await staying
        assert limits.of.lines["m"].running == 1


async def test_a_deadline_that_passes_in_the_queue_is_told() -> None:
    async with Limits(concurrent=1) as limits:
        limits.enter()
        with pytest.raises(DeadlineOver):
            await limits.waiting(deadline=asyncio.get_running_loop().time() + 0.05)


async def test_what_cannot_meet_its_deadline_is_refused_at_once() -> None:
    async with Limits(concurrent=1) as limits:
        running = limits.enter()
        limits.clock.passed += 10
        running.leave(5)
        limits.enter()
        soon = asyncio.get_running_loop().time() + 5
        with pytest.raises(Overloaded, match="before the request's deadline"):
            await limits.waiting(deadline=soon)
        patient = limits.waiting(deadline=soon + 15)
        await settled()
        assert not patient.done()
        patient.cancel()


async def test_of_a_full_queue_the_doomed_is_refused_first() -> None:
    async with Limits(concurrent=1, queue=2) as limits:
        running = limits.enter()
        limits.clock.passed += 2
        running.leave(5)
        running = limits.enter()
        now = asyncio.get_running_loop().time()
        patient = limits.waiting(deadline=now + 100)
        doomed = limits.waiting(deadline=now + 5)
        await settled()
        limits.of.lines["m"].account.lasts_s = 6.0  # they have become slower since
        newcomer = limits.waiting()
        with pytest.raises(Overloaded, match="before the request's deadline"):
            await doomed
        running.leave(5)
        (await patient).leave(5)
        await newcomer


async def test_who_fills_the_queue_gives_a_place_up_to_who_waits_for_none() -> None:
    async with Limits(concurrent=1, queue=3) as limits:
        running = limits.enter()
        flood = [limits.waiting(key("flood")) for _ in range(3)]
        await settled()
        quiet = limits.waiting(key("quiet"))
        await settled()
        assert sum(one.done() for one in flood) == 1
        with pytest.raises(Overloaded, match="queue is full"):
            await limits.waiting(key("flood"))
        urgent = limits.waiting(key("urgent", priority=1))
        await settled()
        assert sum(one.done() for one in flood) == 2
        running.leave(5)
        for waiting in (urgent, quiet, *[one for one in flood if not one.done()]):
            waiting.add_done_callback(lambda one: one.result().leave(5))
        await asyncio.wait([urgent, quiet])
        lost = await asyncio.gather(*[one for one in flood if one.done()], return_exceptions=True)
        assert sum(isinstance(one, Overloaded) for one in lost) == 2


async def test_an_answer_of_any_length_takes_no_more_than_so_much_beforehand() -> None:
    huge = estimate(CHAT, {"max_tokens": 2**62, "n": 2}, 10)
    assert huge == Estimate(10, 2 * MOST_RESERVED_TOKENS)
    assert estimate(RESPONSES, {"max_output_tokens": 5, "n": -1000}, 0) == Estimate(0, 5)


async def test_headers_tell_what_is_left() -> None:
    async with Limits() as limits:
        caller = key(rpm=10, tpm=1000)
        limits.enter(caller).leave(100)
        limits.clock.passed += 30
        limits.enter(caller, Estimate(50, 50))
        assert dict(limits.of.marks(caller)) == {
            b"x-ratelimit-limit-requests": b"10",
            b"x-ratelimit-remaining-requests": b"8",
            b"x-ratelimit-reset-requests": b"1m0.1s",
            b"x-ratelimit-limit-tokens": b"1000",
            b"x-ratelimit-remaining-tokens": b"800",
            b"x-ratelimit-reset-tokens": b"1m0s",
        }
        assert limits.of.marks(key(concurrent=1)) == limits.of.marks(LOCAL) == ()


@pytest.mark.parametrize(
    ("seconds", "written"), [(0, b"0ms"), (0.12, b"120ms"), (7.66, b"7.66s"), (60.1, b"1m0.1s"), (360, b"6m0s")]
)
def test_durations_are_written_as_openai_does(seconds: float, written: bytes) -> None:
    assert as_duration(seconds) == written


@pytest.mark.parametrize(
    ("path", "body", "output"),
    [
        ("/v1/chat/completions", {}, 256),
        ("/v1/chat/completions", {"max_tokens": 5000, "n": 2}, 10_000),
        ("/v1/chat/completions", {"max_completion_tokens": 7, "max_tokens": 9}, 7),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 3}, 6),
        ("/v1/completions", {"prompt": ["a"] * 1000, "n": 8, "max_tokens": 3}, 24_000),
        ("/v1/completions", {"prompt": [[1, 2], [3]], "n": 2, "max_tokens": 3}, 12),
        ("/v1/completions", {"prompt": [1, 2, 3], "n": 2, "max_tokens": 3}, 6),
        ("/v1/responses", {"max_output_tokens": 8}, 8),
        ("/v1/embeddings", {"input": "x"}, 0),
    ],
)
def test_what_a_request_may_come_to(path: str, body: dict[str, Any], output: int) -> None:
    assert estimate(path, body, 12) == (12, output)


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        ("/v1/rerank", {"query": "q" * 40, "documents": ["d" * 80, "d" * 120]}, 10 + 50 + 10),
        ("/v1/rerank", {"query": "q" * 40, "documents": [{"text": "d" * 80}] * 100}, (40 + 100 * 91) // 4 + 99 * 10),
        ("/v1/score", {"text_1": "q" * 40, "text_2": ["d" * 80] * 10}, 300),
        ("/v1/score", {"queries": ["q" * 40] * 10, "items": ["d" * 80] * 10}, 300),
        ("/v1/score", {"data_1": "q" * 40, "data_2": "d" * 80}, 30),
        ("/tokenize", {"prompt": "p" * 400}, 100),
        ("/tokenize", {"messages": [{"role": "user", "content": "p" * 400}]}, 101),
    ],
)
def test_what_is_only_read_is_reserved_as_often_as_it_is(path: str, body: dict[str, Any], tokens: int) -> None:
    assert estimate(path, body, hint_of(body).prompt_tokens) == (tokens, 0)


async def test_keys_that_are_not_seen_any_more_are_forgotten() -> None:
    async with Limits() as limits:
        for number in range(100):
            limits.enter(key(f"k{number}", rpm=5)).leave(0)
        limits.enter(key("busy", rpm=5))
        limits.clock.passed += 61
        for _ in range(60):
            limits.of._sweep()
        assert list(limits.of._accounts) == ["busy"]


async def test_a_sweep_counts_what_has_come_of_what_runs() -> None:
    async with Limits() as limits:
        caller = key(tpm=100)
        ticket = limits.enter(caller, Estimate(1, 10))
        ticket.progress = lambda: 99
        limits.of._sweep()
        with pytest.raises(RateLimited):
            limits.enter(caller)


@pytest.mark.parametrize("model", [{"rpm": 1}, {"tpm": 1}, {"concurrent": 1}])
def test_several_workers_with_limits_need_redis(model: dict[str, Any]) -> None:
    with pytest.raises(StartError, match=r"limits of models.m hold across 2 workers only with Redis: set state\.redis"):
        check_shared(config(workers=2, **model))
    check_shared(config(workers=1, **model))
    check_shared(config(workers=2, redis="redis://127.0.0.1/0", **model))


def test_several_workers_and_keys_with_limits_need_it_too() -> None:
    check_shared(config(workers=2))
    with pytest.raises(StartError, match="the key 'a', the key 'b', the key 'c' and 2 more"):
        check_shared(config(workers=2), ["a", "b", "c", "d", "e"])


async def test_a_quota_without_any_limit_refuses_nothing() -> None:
    async with Limits() as limits:
        for _ in range(1000):
            limits.enter(replace(key(), quota=Quota())).leave(10**6)
