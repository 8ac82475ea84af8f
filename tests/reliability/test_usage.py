"""Usage adds up: thousands of mixed requests, streams cut, an engine killed; what callers saw beside the ledger."""

import asyncio
import logging
import random
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from engine.sim import Expected, Fault, expected, simulator
from penstock.store import opened
from penstock.used import used
from serving import ledger as ledgers
from serving.ledger import Ledger
from tests.reliability.client import CHAT, TEXT, Caller, Said, ask, post
from tests.reliability.conftest import about, until
from tests.reliability.test_processes import serving, simulated
from tests.serving.conftest import run_gateway

pytestmark = pytest.mark.anyio

ASK: dict[str, Any] = {"model": "sim", "messages": [{"role": "user", "content": "How much?"}], "max_tokens": 12}
STREAM = ASK | {"stream": True}
TOLD = STREAM | {"stream_options": {"include_usage": True}}
REQUESTS = 5000
AT_ONCE = 64
ITL_S = 0.001  # so that events come one by one
STAYING, LEAVING = "sk-of-those-who-stay-0", "sk-of-those-who-leave-0"
# What a request asks for beside text; a stream of the last three is not continued when it is cut.
MORE: list[dict[str, Any]] = [
    {},
    {},
    {"max_tokens": 40},
    {"n": 2},
    {"logprobs": True},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
]
CUTS = [
    Fault(kind, after=after, probability=0.06, seed=after) for kind in ("cut", "reset_after") for after in (0, 3, 9)
]


@dataclass
class Seen:
    """What those who stay were answered, and what that costs: one prompt, and the text that came."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut: int = 0
    ends: Counter[str] = field(default_factory=Counter)

    def add(self, said: Said, body: dict[str, Any]) -> None:
        """Fails for an answer that is neither whole nor says so. What was refused costs nothing."""
        if said.status != 200:
            assert said.status in (502, 503)
            self.ends["refused"] += 1
            return
        choices = [expected(body, choice=choice) for choice in range(body.get("n", 1))]
        self.requests += 1
        self.prompt_tokens += choices[0].prompt_tokens
        if said.error:
            self.ends["cut short"] += 1
            self.cut += 1
            self.completion_tokens += sum(
                tokens_until(choice, said.texts.get(index, "")) for index, choice in enumerate(choices)
            )
            return
        self.ends["continued" if b"goes on" in said.body else "whole"] += 1
        assert texts(said, body) == [choice.text for choice in choices]
        self.completion_tokens += sum(choice.completion_tokens for choice in choices)


def texts(said: Said, body: dict[str, Any]) -> list[str]:
    if body.get("stream"):
        assert said.done
        return [said.texts[index] for index in range(len(said.texts))]
    return [choice["text"] if "prompt" in body else choice["message"]["content"] for choice in said.json["choices"]]


def tokens_until(choice: Expected, text: str) -> int:
    """How many of its tokens are this beginning of it."""
    return next(count for count in range(len(choice.tokens) + 1) if "".join(choice.tokens[:count]) == text)


def request(number: int, dice: random.Random) -> tuple[str, dict[str, Any]]:
    body = dice.choice((ASK, STREAM, TOLD)) | dice.choice(MORE)
    if dice.random() < 0.2:
        text = {name: value for name, value in body.items() if name not in ("messages", "tools", "logprobs")}
        return TEXT, text | {"prompt": f"Tell me about river {number}"}
    return CHAT, about(number, body)


@asynccontextmanager
async def gateway(ledger: Ledger, staying: Sequence[str], leaving: Sequence[str]) -> AsyncIterator[str]:
    """Those who leave have engines of their own."""
    routing = {"affinity": "off", "breaker_failures": 50, "breaker_open_s": 0.02}
    tree: dict[str, Any] = {
        "engines": {
            "e": {"urls": staying, "routing": routing, "probe": {"interval_s": 0.2, "timeout_s": 1}},
            "l": {"urls": leaving},
        },
        "models": {"sim": {"engine": "e"}, "left": {"engine": "l"}},
        "gateway": {"keys": [STAYING, LEAVING]},
    }
    writing = asyncio.create_task(ledger.run())
    async with run_gateway(hot=True, ledger=ledger, **tree) as client:
        yield str(client.base_url)
        await asyncio.sleep(0.2)  # the engines have seen that who has left has left
    writing.cancel()
    await asyncio.wait([writing])


@asynccontextmanager
async def killed_and_started(seen: Seen) -> AsyncIterator[str]:
    """An engine that gets `kill -9` after a third of the requests, and comes back at once on the same port."""

    async def killed() -> None:
        await until(lambda: seen.requests > REQUESTS // 3, within_s=60)
        process.kill()
        again = simulated(*options, port=int(url.rpartition(":")[2]))
        await asyncio.to_thread(stack.enter_context, again)

    options = ["--itl-s", str(ITL_S)]
    for fault in CUTS:
        options += [
            "--fault",
            f"{fault.kind}:after={fault.after},probability={fault.probability},seed={50 + fault.seed}",
        ]
    with ExitStack() as stack:
        process, url = await asyncio.to_thread(stack.enter_context, simulated(*options))
        killing = asyncio.create_task(killed())
        yield url
        await killing
        figures = (await asyncio.to_thread(httpx2.get, f"{url}/metrics", trust_env=False)).text
        assert re.search(r"^vllm:prompt_tokens_total\S* [1-9]", figures, re.MULTILINE), "it has not been asked again"


async def test_five_thousand_requests_of_every_kind_cost_what_came(
    database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is whole, continued, or cut short: to the token what the caller saw. Who leaves: what the engines have
    counted. Meanwhile engines cut streams, and one is killed and started again."""
    caplog.set_level(logging.CRITICAL)  # of lines about it there are hundreds
    monkeypatch.setattr(ledgers, "COUNT_WITHIN_S", 60)  # however slow the machine is: none is estimated
    dice = random.Random(1)
    turn = asyncio.Semaphore(AT_ONCE)
    seen = Seen()

    async def one(url: str, number: int) -> None:
        path, body = request(number, dice)
        async with turn:
            if number % 10 == 0:
                await left(url, about(number, STREAM | {"model": "left"}))
            else:
                seen.add(await ask(url, body, path, bearing(STAYING)), body)

    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened(database))
        cutting = [await stack.enter_async_context(simulator(*CUTS, itl_s=ITL_S)) for _ in range(2)]
        patient = [await stack.enter_async_context(simulator(model="left")) for _ in range(2)]
        killed = await stack.enter_async_context(killed_and_started(seen))
        urls = [[*(sim.url for sim in cutting), killed], [sim.url for sim in patient]]
        async with gateway(Ledger(store), *urls) as url:
            await asyncio.gather(*(one(url, number) for number in range(REQUESTS)))
        rows = {row["model"]: row for row in await used(store, ["model"])}
    print(f"those who stayed: {dict(seen.ends)}")
    assert seen.ends["refused"] < REQUESTS / 100
    assert min(seen.ends["continued"], seen.ends["cut short"]) > REQUESTS / 50
    costs = {name: getattr(seen, name) for name in ("requests", "prompt_tokens", "completion_tokens", "cut")}
    assert rows["sim"] == rows["sim"] | costs | {"abandoned": 0, "estimated": 0}
    assert rows["left"] == rows["left"] | {
        "requests": REQUESTS // 10,
        "prompt_tokens": sum(sim.core.figures.prompt_tokens for sim in patient),
        "completion_tokens": sum(sim.core.figures.generation_tokens for sim in patient),
        "estimated": 0,
    }


def bearing(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def left(url: str, body: dict[str, Any]) -> None:
    """A client that goes as soon as its answer begins."""
    async with Caller(url) as caller:
        await caller.send(post(body, headers=bearing(LEAVING)))
        await caller.head()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
async def test_what_was_used_outlasts_the_gateway(tmp_path: Path, database: str, number: signal.Signals) -> None:
    answered: list[float] = []
    with simulated() as (_, url):
        async with serving([url], tmp_path, state__database=database) as served:
            until = time.monotonic() + 2.5
            while time.monotonic() < until:
                await ask(served.url, about(len(answered), STREAM))
                answered.append(time.monotonic())
            served.process.send_signal(number)
            await asyncio.to_thread(served.process.wait)
            ended = time.monotonic()
            async with opened(database) as store:
                (row,) = await used(store, [])
    least = len(answered) if number == signal.SIGTERM else sum(at < ended - 1 for at in answered)
    assert 0 < least <= row["requests"] <= len(answered)
