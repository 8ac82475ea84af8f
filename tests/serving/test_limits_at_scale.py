"""Three gateways as processes, one Redis, fifty keys, ten thousand requests: no limit is ever exceeded."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import SecretStr

from engine.sim import Simulator, simulator
from penstock.keyring import Keyring, pepper, wanted
from penstock.store import opened
from tests.conftest import free_port, running
from tests.redis_server import running_redis
from tests.reliability.client import Caller, Said

pytestmark = pytest.mark.anyio

PENSTOCK = str(Path(sys.executable).parent / "penstock")
PEPPER = "pepper of the tests, which is long enough"
GATEWAYS = 3
KEYS = 50
REQUESTS = 10_000
CLIENTS = 60
WITHIN_S = 55
LIMITS: Sequence[dict[str, int]] = ({"rpm": 100}, {"tpm": 4000}, {})
CONCURRENT = 3
PROMPT = "Uncharacteristically incomprehensible counterrevolutionaries notwithstanding, where does it flow?"
BODY: dict[str, Any] = {"model": "sim", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 20}
STREAM = BODY | {"stream": True, "stream_options": {"include_usage": True}}


@dataclass
class Seen:
    """What one key was answered."""

    let_in: int = 0
    tokens: int = 0
    largest: int = 0
    others: Counter[str] = field(default_factory=Counter)

    def add(self, said: Said) -> None:
        if said.status != 200:
            assert said.error
            assert int(said.headers["retry-after"]) >= 1
            self.others[said.error["code"]] += 1
            return
        usage = said.usage or said.json["usage"]
        self.let_in += 1
        self.tokens += usage["total_tokens"]
        self.largest = max(self.largest, usage["total_tokens"])


async def test_three_gateways_and_ten_thousand_requests_exceed_no_limit(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All of it within a minute, so that what a key is let in is what its minute holds. While this machine is too busy
    for Redis to answer in time, requests are refused, not let in uncounted."""
    with ExitStack() as stack:
        redis = stack.enter_context(running_redis(tmp_path_factory.mktemp("redis")))
        state = {"database": f"sqlite:///{tmp_path}/p.db", "pepper": PEPPER, "redis": redis.url, "redis_lost": "closed"}
        async with opened(state["database"]) as store, simulator(itl_s=0.002) as sim:
            ring = Keyring(store, pepper(SecretStr(PEPPER)))
            limits = [{"concurrent": CONCURRENT, **LIMITS[number % 3]} for number in range(KEYS)]
            keys = [
                (await ring.create(wanted({"name": f"k{number}", **limit}), "test")).key
                for number, limit in enumerate(limits)
            ]
            urls = await asyncio.to_thread(started, stack, sim, state, tmp_path)
            began = asyncio.get_running_loop().time()
            watching = asyncio.create_task(most_at_once(sim))
            seen = [Seen() for _ in keys]
            await asyncio.gather(*(client(number, urls, keys, seen) for number in range(CLIENTS)))
            took_s = asyncio.get_running_loop().time() - began
            watching.cancel()
            most = await watching
    assert took_s < WITHIN_S, "this machine is too slow for all of it to fall into one minute"
    assert sum(one.let_in + one.others.total() for one in seen) == REQUESTS // CLIENTS * CLIENTS
    assert most == CONCURRENT
    for limit, one in zip(limits, seen, strict=True):
        assert set(one.others) <= {"rate_limit_exceeded", "overloaded"}
        unanswered = one.others["overloaded"]
        if "rpm" in limit:
            assert limit["rpm"] - unanswered <= one.let_in <= limit["rpm"]
        if "tpm" in limit:
            assert limit["tpm"] - unanswered * one.largest <= one.tokens < limit["tpm"] + one.largest


def started(stack: ExitStack, sim: Simulator, state: dict[str, str], folder: Path) -> list[str]:
    env = {
        "PENSTOCK_STATE": json.dumps(state),
        "PENSTOCK_ENGINES": json.dumps({"e": {"urls": [sim.url]}}),
        "PENSTOCK_MODELS": json.dumps({"sim": {"engine": "e"}}),
        "PENSTOCK_LOG__LEVEL": "warning",
    }
    urls = []
    for _ in range(GATEWAYS):
        port = free_port()
        command = [PENSTOCK, "serve", "--port", str(port)]
        urls.append(stack.enter_context(running(command, port, folder, **env)).url)
    return urls


async def most_at_once(sim: Simulator) -> int:
    """Of any one key, by the salt that its prompts have in the engine's cache; until cancelled."""
    most = 0
    try:
        while True:
            most = max(most, *Counter(generation.asked.salt for generation in sim.core.live).values(), 0)
            await asyncio.sleep(0.001)
    except asyncio.CancelledError:
        return most


async def client(number: int, urls: list[str], keys: list[str], seen: list[Seen]) -> None:
    """One of those who ask, here and there, with any key, every other request a stream."""
    random = Random(number)
    async with Caller(random.choice(urls)) as caller:
        for turn in range(REQUESTS // CLIENTS):
            which = random.randrange(len(keys))
            headers = {"authorization": f"Bearer {keys[which]}"}
            seen[which].add(await caller.ask(STREAM if turn % 2 else BODY, headers=headers))
