"""Who is next."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.fair_queue import FORGET_FROM, FairQueue, Waiter


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def waiter(loop: asyncio.AbstractEventLoop, tenant: str, priority: int = 0, cost: int = 10) -> Waiter:
    return Waiter(tenant, loop.create_future(), priority, cost)


def order(queue: FairQueue) -> list[Waiter]:
    served = []
    while one := queue.pop():
        served.append(one)
    return served


def test_one_tenants_requests_keep_their_order(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue()
    waiters = [waiter(loop, "a", cost=cost) for cost in (50, 1, 9, 200)]
    for one in waiters:
        queue.push(one)
    assert order(queue) == waiters


def test_the_more_urgent_go_first_whoever_they_are(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue()
    for priority in (0, 5, -3, 5, 0):
        queue.push(waiter(loop, "a", priority))
    assert queue.urgency == 5
    assert [one.priority for one in order(queue)] == [5, 5, 0, 0, -3]


def test_one_who_asks_seldom_is_next_whatever_another_has_asked_for(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue()
    for _ in range(100):
        queue.push(waiter(loop, "flood"))
    for _ in range(10):
        assert queue.pop()
    quiet = waiter(loop, "quiet")
    queue.push(quiet)
    assert queue.ahead_of("third", 0) == 2
    assert queue.ahead_of("flood", 0) == 91
    assert queue.pop() is quiet


@given(costs=st.lists(st.integers(1, 400), min_size=3, max_size=3))
def test_tenants_that_always_wait_are_served_equally_many_tokens(costs: list[int]) -> None:
    loop = asyncio.new_event_loop()
    queue, tokens = FairQueue(), Counter[str]()
    for number, cost in enumerate(costs):
        for _ in range(3):
            queue.push(waiter(loop, f"t{number}", cost=cost))
    for _ in range(600):
        served = queue.pop()
        assert served
        tokens[served.tenant] += served.cost
        queue.push(waiter(loop, served.tenant, cost=served.cost))
        assert max(tokens.values()) - min(tokens[f"t{number}"] for number in range(3)) <= 2 * max(costs)
    loop.close()


def test_one_whose_answer_was_short_is_charged_no_more(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue()
    for _ in range(100):
        queue.push(waiter(loop, "flood", cost=5))
    assert queue.pop()
    for _ in range(10):
        quiet = waiter(loop, "quiet", cost=10_000)
        queue.push(quiet)
        assert queue.pop() is quiet
        assert [one.tenant for one in (queue.pop(), queue.pop()) if one] == ["flood", "flood"]
        queue.correct("quiet", 0, 9_995)


def test_one_who_leaves_is_gone_at_once_and_owes_nothing(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue()
    left, stayed, other = waiter(loop, "a", cost=1000), waiter(loop, "a"), waiter(loop, "b")
    for one in (left, stayed, other):
        queue.push(one)
    assert queue.drop(left)
    assert not queue.drop(left)
    assert (len(queue), order(queue)) == (2, [stayed, other])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from(["push", "pop", "drop"])), max_size=80))
def test_nobody_is_lost_or_served_twice(moves: list[tuple[int, int, str]]) -> None:
    loop = asyncio.new_event_loop()
    queue, waiting = FairQueue(), []
    for tenant, priority, move in moves:
        if move == "push":
            waiting.append(waiter(loop, f"t{tenant}", priority))
            queue.push(waiting[-1])
        elif move == "pop":
            served = queue.pop()
            assert (served is None) == (not waiting)
            if served:
                assert served.priority == max(one.priority for one in waiting)
                waiting.remove(served)
        elif waiting:
            assert queue.drop(waiting.pop(tenant % len(waiting)))
        assert len(queue) == len(waiting)
        assert set(queue) == set(waiting)
    assert set(order(queue)) == set(waiting)
    loop.close()


def test_tenants_that_are_gone_are_forgotten(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue()
    for number in range(5000):
        queue.push(waiter(loop, f"t{number}"))
        queue.push(waiter(loop, f"t{number}"))
        queue.pop()
        if len(queue) > 20:
            queue.pop()
    assert len(queue._levels[0].flows) < 4 * FORGET_FROM
