"""Replicas that come and go, before simulated engines on real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from engine.affinity import Hint, hint_of
from engine.asked import Asked, Limits
from engine.dispatch import Dispatch
from engine.elsewhere import Elsewhere
from engine.openai import Taken
from engine.pool import Pool
from engine.reading import CHAT
from engine.sim import simulator
from penstock.config import Engine, Probe
from penstock.errors import StartError

pytestmark = pytest.mark.anyio

QUICK = Probe(interval_s=0.1, timeout_s=1)
SLOW = {"model": "sim", "messages": [{"role": "user", "content": "tell me"}], "max_tokens": 20, "stream": True}


class Place:
    """Where the addresses behind a name are told from."""

    def __init__(self) -> None:
        self.apply: Callable[[frozenset[str]], None] | None = None

    async def watch(self, address: str, apply: Callable[[frozenset[str]], None]) -> None:
        self.apply = apply
        await asyncio.Event().wait()

    async def tell(self, *urls: str) -> None:
        while self.apply is None:
            await asyncio.sleep(0.01)
        self.apply(frozenset(urls))


@asynccontextmanager
async def kept(engine: Engine, place: Place) -> AsyncIterator[Pool]:
    pool = Pool("e", [], 5)
    running = asyncio.create_task(Elsewhere(engine, ["sim"], pool, place.watch).run())
    try:
        yield pool
    finally:
        running.cancel()
        await asyncio.wait([running])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_replicas_join_and_leave_as_their_name_says() -> None:
    place = Place()
    async with simulator(model="sim") as one, simulator(model="sim") as two:
        async with kept(Engine(urls={"dns://engines:8000": 1}, probe=QUICK), place) as pool:
            await place.tell(one.url)
            await pool.until_ready()
            assert [replica.client.url for replica in pool.replicas] == [one.url]
            await place.tell(one.url, two.url)
            await until(lambda: len(pool.replicas) == 2 and all(replica.ready for replica in pool.replicas))
            await place.tell(two.url)
            await until(lambda: [replica.client.url for replica in pool.replicas] == [two.url])
            chosen = pool.choose(Hint())
            assert chosen
            assert chosen.client.url == two.url
            await place.tell(one.url, two.url)
            await until(lambda: len(pool.replicas) == 2)
            assert sorted(replica.name for replica in pool.replicas) == ["e-0", "e-1"]


async def test_one_that_leaves_may_end_what_it_does() -> None:
    place = Place()
    async with simulator(model="sim", itl_s=0.02) as sim:
        async with kept(Engine(urls={"dns://engines:8000": 1}, probe=QUICK), place) as pool:
            await place.tell(sim.url)
            await pool.until_ready()
            taken = Taken()
            running = asyncio.create_task(
                Dispatch(pool, Asked(CHAT, SLOW, hint=hint_of(SLOW)), taken, Limits(), "m").run()
            )
            await taken.next()
            await place.tell()
            assert pool.choose(Hint()) is None
            await running
            assert sim.completed == 1
            await until(lambda: not pool.replicas)


async def test_weights_go_with_the_addresses() -> None:
    async with kept(Engine(urls={"http://127.0.0.1:1": 3, "unix:/nowhere.sock": 1}, probe=QUICK), Place()) as pool:
        await until(lambda: len(pool.replicas) == 2)
        assert {replica.client.url: replica.weight for replica in pool.replicas} == {
            "http://127.0.0.1:1": 3,
            "unix:/nowhere.sock": 1,
        }


async def test_an_address_that_can_never_be_followed_is_told() -> None:
    async def refuse(address: str, apply: object) -> None:
        raise StartError("not in a cluster")

    find: Callable[..., Awaitable[None]] = refuse
    with pytest.raises(StartError, match="not in a cluster"):
        await Elsewhere(Engine(urls={"kubernetes://n/s:8000": 1}), ["sim"], Pool("e", [], 0), find).run()
