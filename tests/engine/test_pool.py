"""Which replica takes the next request."""

import asyncio
from collections.abc import Sequence

import pytest

from engine.affinity import Hint, hint_of
from engine.pool import NoReplica, Pool
from engine.replica import Replica
from penstock.config import Routing

pytestmark = pytest.mark.anyio

SHORT = Hint(tokens=100)


def replicas(count: int, *, weights: Sequence[float] = ()) -> list[Replica]:
    made = []
    for number in range(count):
        replica = Replica.at(f"e-{number}", f"http://127.0.0.1:{number + 1}", weight=[*weights, *[1.0] * count][number])
        replica.set_ready(True)
        made.append(replica)
    return made


def pool_of(members: Sequence[Replica], *, wait_s: float = 0.0, **routing: object) -> Pool:
    return Pool("e", members, wait_s, Routing.model_validate(routing))


def chat(*texts: str) -> Hint:
    return hint_of({"messages": [{"role": "user", "content": text} for text in texts]})


def taken(pool: Pool, hint: Hint = SHORT) -> Replica:
    replica = pool.choose(hint)
    assert replica
    replica.take(hint.tokens)
    return replica


async def test_the_one_with_the_least_tokens_outstanding_is_taken() -> None:
    first, second = members = replicas(2)
    pool = pool_of(members)
    first.take(1000)
    second.take(300)
    second.take(300)
    assert pool.choose(SHORT) is second
    second.take(900)
    assert pool.choose(SHORT) is first
    first.give_back(1000)
    assert first.outstanding == 0


async def test_what_is_not_ready_draining_or_tried_already_is_not_taken() -> None:
    first, second, third = members = replicas(3)
    pool = pool_of(members)
    first.set_ready(False)
    second.drain()
    assert pool.choose(SHORT) is third
    assert pool.choose(SHORT, [third]) is None


async def test_the_idle_take_turns() -> None:
    pool = pool_of(replicas(3))
    turns = []
    for _ in range(6):
        replica = taken(pool)
        replica.give_back(SHORT.tokens)
        turns.append(replica.name)
    assert sorted(turns) == ["e-0", "e-0", "e-1", "e-1", "e-2", "e-2"]


async def test_weights_are_shares() -> None:
    pool = pool_of(replicas(2, weights=[3.0, 1.0]))
    counts = {"e-0": 0, "e-1": 0}
    for _ in range(400):
        replica = taken(pool)
        replica.give_back(SHORT.tokens)
        counts[replica.name] += 1
    assert counts == {"e-0": 300, "e-1": 100}


async def test_a_conversation_goes_where_its_beginning_was_seen() -> None:
    pool = pool_of(replicas(4))
    opened = {number: taken(pool, chat(f"hello {number}")) for number in range(4)}
    assert len(set(opened.values())) == 4
    for number, replica in opened.items():
        assert pool.choose(chat(f"hello {number}", "and then?")) is replica


async def test_affinity_yields_to_load() -> None:
    members = replicas(2)
    pool = pool_of(members, affinity_factor=2)
    seen = taken(pool, chat("hello"))
    other = next(replica for replica in members if replica is not seen)
    longer = chat("hello", "x" * 400)
    assert pool.choose(longer) is seen
    seen.take(10_000)
    assert pool.choose(longer) is other


async def test_affinity_can_be_switched_off() -> None:
    pool = pool_of(replicas(2), affinity="off")
    names = set()
    for _ in range(4):
        replica = taken(pool, chat("the same"))
        replica.give_back(0)
        names.add(replica.name)
    assert names == {"e-0", "e-1"}
    assert len(pool.index) == 0


async def test_the_callers_key_points_to_one_replica_in_every_process() -> None:
    one, another = pool_of(replicas(5)), pool_of(replicas(5))
    for key in ("a", "b", "c", "d"):
        hint = hint_of({"messages": [{"role": "user", "content": key * 9}], "prompt_cache_key": key})
        chosen, same = one.choose(hint), another.choose(hint)
        assert chosen
        assert same
        assert chosen.name == same.name
    session = hint_of({"prompt_cache_key": "b"}, b"a")
    assert session.key == "a"


async def test_a_key_whose_replica_is_away_goes_to_the_next_and_comes_back() -> None:
    pool = pool_of(replicas(3))
    hint = Hint(key="somebody")
    home = pool.choose(hint)
    assert home
    home.set_ready(False)
    assert pool.choose(hint) not in (None, home)
    home.set_ready(True)
    assert pool.choose(hint) is home


async def test_a_restarted_replica_has_forgotten_what_it_saw() -> None:
    pool = pool_of(replicas(2))
    seen = taken(pool, chat("hello"))
    seen.ended("killed")
    seen.set_ready(True)
    assert pool.choose(chat("hello", "again")) is not seen


async def test_members_come_and_go() -> None:
    (first,) = members = replicas(1)
    pool = pool_of(members)
    for _ in range(10):
        taken(pool)
    (second,) = replicas(1)
    pool.add(second)
    assert pool.choose(SHORT) is second
    pool.remove(second)
    assert pool.choose(SHORT) is first
    second.set_ready(False)
    assert pool.replicas == [first]


async def test_a_request_waits_for_an_engine_that_is_starting() -> None:
    (replica,) = members = replicas(1)
    replica.set_ready(False)
    asyncio.get_running_loop().call_later(0.05, replica.set_ready, True)
    assert await pool_of(members, wait_s=5).available(SHORT) is replica


async def test_waiting_ends_with_a_time_to_try_again() -> None:
    members = replicas(2)
    for replica in members:
        replica.set_ready(False)
    with pytest.raises(NoReplica) as caught:
        await pool_of(members, wait_s=0.01).available(SHORT)
    assert caught.value.retry_after_s


async def test_after_failures_in_a_row_a_replica_is_left_alone_then_tried_with_one_request() -> None:
    (replica,) = members = replicas(1)
    pool = pool_of(members, breaker_failures=3, breaker_open_s=0.1)
    for _ in range(3):
        assert pool.choose(SHORT)
        replica.breaker.failed()
    assert pool.choose(SHORT) is None
    with pytest.raises(NoReplica, match="left alone") as caught:
        await pool.available(SHORT)
    assert caught.value.retry_after_s
    while pool.choose(SHORT) is None:
        await asyncio.sleep(0.01)
    replica.take(1)
    assert pool.choose(SHORT) is None
    replica.breaker.succeeded()
    assert pool.choose(SHORT) is replica


async def test_a_replica_that_fails_its_trial_is_left_alone_for_longer() -> None:
    (replica,) = members = replicas(1)
    pool = pool_of(members, breaker_failures=1, breaker_open_s=0.05)
    replica.breaker.failed()
    first_s = replica.breaker.retry_after_s
    while pool.choose(SHORT) is None:
        await asyncio.sleep(0.01)
    trial = replica.take(1)
    replica.breaker.failed()  # one of before
    assert replica.breaker.retry_after_s == 0
    replica.breaker.failed(trial)
    assert replica.breaker.retry_after_s > first_s


async def test_a_breaker_that_closed_stays_closed_when_its_time_is_over() -> None:
    (replica,) = members = replicas(1)
    pool = pool_of(members, breaker_failures=1, breaker_open_s=0.05)
    replica.breaker.failed()
    replica.breaker.succeeded()
    await asyncio.sleep(0.1)
    replica.take(1)
    assert pool.choose(SHORT) is replica


async def test_retries_are_a_share_of_what_runs() -> None:
    pool = pool_of(replicas(1), retry_share=0.2)
    pool.active, pool.retrying = 100, 19
    assert pool.may_retry()
    pool.retrying = 20
    assert not pool.may_retry()


class Holds:
    """What an engine says of its cache."""

    def __init__(self, count: int) -> None:
        self.count = count

    def matched(self, tokens: Sequence[int], salt: str = "") -> int:
        return min(self.count, len(tokens))


async def test_what_engines_say_of_their_caches_stands_above_what_was_sent_there() -> None:
    members = replicas(3)
    pool = pool_of(members)
    sent = taken(pool, chat("hello"))
    holder = next(replica for replica in members if replica is not sent)
    holder.cached = Holds(64)
    hint = chat("hello", "again")
    assert pool.choose(hint) is sent
    hint.token_ids = range(100)
    assert pool.choose(hint) is holder
    holder.cached = Holds(0)
    assert pool.choose(hint) is not None
