"""Which replica takes the next request."""

import asyncio

import pytest

from engine.pool import Pool
from engine.replica import Replica
from penstock.errors import EngineUnavailable

pytestmark = pytest.mark.anyio


def replicas(count: int) -> list[Replica]:
    return [Replica.at(str(number), "http://127.0.0.1:1") for number in range(count)]


async def test_the_least_busy_that_is_ready_is_taken_and_given_back() -> None:
    first, second, third = replicas(3)
    pool = Pool("e", [first, second, third], 0)
    second.ready.set()
    third.ready.set()
    async with pool.lease() as one, pool.lease() as two:
        assert {one.name, two.name} == {"1", "2"}
    assert [replica.outstanding for replica in pool.replicas] == [0, 0, 0]


async def test_a_request_waits_for_an_engine_that_is_starting() -> None:
    (replica,) = replicas(1)
    asyncio.get_running_loop().call_later(0.05, replica.ready.set)
    async with Pool("e", [replica], 5).lease() as leased:
        assert leased is replica


async def test_waiting_ends_with_a_time_to_try_again() -> None:
    with pytest.raises(EngineUnavailable) as caught:
        async with Pool("e", replicas(2), 0.01).lease():
            pass
    assert caught.value.retry_after_s


async def test_a_request_that_is_cancelled_gives_its_replica_back() -> None:
    (replica,) = replicas(1)
    replica.ready.set()

    async def hold() -> None:
        async with Pool("e", [replica], 0).lease():
            await asyncio.sleep(60)

    task = asyncio.create_task(hold())
    await asyncio.sleep(0)
    assert replica.outstanding == 1
    task.cancel()
    await asyncio.wait([task])
    assert replica.outstanding == 0
