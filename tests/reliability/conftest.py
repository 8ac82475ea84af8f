"""A gateway on a real socket before engines that misbehave on command, all in the test's own event loop."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from engine.sim import Simulator
from tests.reliability.client import Said, ask
from tests.serving.conftest import run_gateway

ASK: dict[str, Any] = {"model": "sim", "messages": [{"role": "user", "content": "Where does the river go?"}]}
STREAM: dict[str, Any] = {**ASK, "stream": True}
WITH_USAGE: dict[str, Any] = {**STREAM, "stream_options": {"include_usage": True}}


@dataclass
class Gateway:
    url: str
    client: httpx2.AsyncClient

    async def ask(self, body: Any, *args: Any, **more: Any) -> Said:
        return await ask(self.url, body, *args, **more)

    async def many(self, count: int, body: dict[str, Any], **more: Any) -> list[Said]:
        """So many at once, each with another prompt."""
        return await asyncio.gather(*(self.ask(about(number, body), **more) for number in range(count)))

    async def figure(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        text = (await self.client.get("/metrics")).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for said, value in found if all(label in said for label in wanted))


@pytest.fixture(autouse=True)
def unsurprised(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is provoked, the event loop has nothing to report, and no error is one that was not foreseen."""
    yield
    surprises = [record for record in caplog.get_records("call") if record.name == "asyncio" or record.exc_info]
    assert not surprises, [record.getMessage() for record in surprises]


Behind = Callable[..., AbstractAsyncContextManager[Gateway]]


@pytest.fixture
def before(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Behind:
    """`async with before(first, second, stall_timeout_s=1) as gateway`: two replicas, or their addresses.

    `routing` is the engine's, `probe` how it is watched; the rest configures the gateway.
    """
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))

    @asynccontextmanager
    async def running(
        *replicas: Simulator | str, routing: Any = None, probe: Any = None, **gateway: Any
    ) -> AsyncIterator[Gateway]:
        urls = [replica if isinstance(replica, str) else replica.url for replica in replicas]
        engine = {"urls": urls, "routing": routing or {}, "probe": {"interval_s": 0.2, "timeout_s": 1} | (probe or {})}
        tree: dict[str, Any] = {"engines": {"e": engine}, "models": {"sim": {"engine": "e"}}, "gateway": gateway}
        async with run_gateway(hot=True, **tree) as client:
            yield Gateway(str(client.base_url), client)

    return running


def about(number: int, body: dict[str, Any]) -> dict[str, Any]:
    """The same request about something else."""
    return {**body, "messages": [{"role": "user", "content": f"Tell me about number {number}."}]}


async def until(holds: Callable[[], bool], within_s: float = 10) -> None:
    """Raises TimeoutError when it does not in time."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.01)
