"""Routes to versions of a model: who is asked by which name, what answers say of it, what the cache keeps apart."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.room import Room
from engine.route import Route
from engine.sim import Fault, Simulator, simulator
from engine.sim.generation import Speed
from penstock.config import Config
from serving.app import Gateway
from serving.recording import Recording
from serving.relay import Relay
from serving.stack import running

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Where does it go?"}]}
VERSION = b"x-penstock-model-version"


def adapter(folder: Path, name: str, base: str = "base", **config: Any) -> None:
    """As vLLM's resolver wants it."""
    (folder / name).mkdir(parents=True)
    said = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 8, **config}
    (folder / name / "adapter_config.json").write_text(json.dumps(said))
    (folder / name / "adapter_model.safetensors").write_bytes(b"weights")


class Asking:
    """A gateway before one simulated engine, whose model `m` can be sent elsewhere."""

    def __init__(self, gateway: Gateway, sims: list[Simulator]) -> None:
        self.gateway = gateway
        self.sims = sims
        assert gateway.stack
        relay = gateway.stack.models["m"]
        assert isinstance(relay, Relay)
        self.relay = relay

    def go(self, name: str | None, version: str | None = None) -> None:
        self.relay.current = Route(self.relay.current.pool, name, version or name)

    async def ask(self, headers: Mapping[bytes, bytes] | None = None, **more: Any) -> tuple[dict[bytes, bytes], bytes]:
        """The headers and the whole of an answer."""
        exchange = received(headers, **more)
        await self.gateway.answer(exchange)
        assert exchange.status == 200, exchange._said
        return dict(exchange._headers), b"".join(exchange._said)

    def only_one_at_once(self) -> None:
        """And each takes a moment."""
        limited = self.gateway.config.models["m"].model_copy(update={"concurrent": 1})
        self.gateway.admission.change({"m": limited})
        self.sims[0].core.speed = Speed(0.3, 0.0, 0.0)


def received(headers: Mapping[bytes, bytes] | None = None, **more: Any) -> Recording:
    exchange = Recording(CHAT, headers or {}, "", Room(2**20))
    exchange.feed(json.dumps(BODY | more).encode())
    exchange.fed()
    return exchange


@asynccontextmanager
async def asking(folder: Path, *faults: Fault, replicas: int = 1, **tree: Any) -> AsyncIterator[Asking]:
    async with (
        simulator(*faults, model="base", adapters=folder) as first,
        simulator(model="base", adapters=folder) as second,
    ):
        sims = [first, second][:replicas]
        engine = {"urls": [each.url for each in sims], "probe": {"interval_s": 0.2, "timeout_s": 1}}
        config = Config(engines={"e": engine}, models={"m": {"engine": "e"}}, **tree)
        gateway = Gateway(config)
        async with running(config) as stack, gateway.admission:
            gateway.stack = stack
            await stack.until_ready()
            yield Asking(gateway, sims)


async def test_a_version_is_asked_for_by_its_name_and_the_answer_says_which_it_was(tmp_path: Path) -> None:
    adapter(tmp_path, "terse@1")
    adapter(tmp_path, "terse@2")
    async with asking(tmp_path) as asked:
        headers, before = await asked.ask()
        assert VERSION not in headers
        assert json.loads(before)["model"] == "base"
        for version in ("terse@1", "terse@2"):
            asked.go(version)
            for stream in (False, True):
                headers, said = await asked.ask(stream=stream)
                assert headers[VERSION] == version.encode()
                assert f'"model":"{version}"'.encode() in said.replace(b'": "', b'":"')
        asked.go(None, "base@4")
        headers, said = await asked.ask()
        assert (headers[VERSION], json.loads(said)["model"]) == (b"base@4", "base")


async def test_a_cut_stream_goes_on_with_the_same_version(tmp_path: Path) -> None:
    adapter(tmp_path, "terse@1")
    async with asking(tmp_path, Fault("cut", after=3, times=1), replicas=2) as asked:
        asked.go("terse@1")
        answers = [(await asked.ask(stream=True, temperature=0))[1] for _ in range(2)]
        assert any(b"another replica goes on" in answer for answer in answers)
        bodies = [request.body for sim in asked.sims for request in sim.requests if request.method == "POST"]
        assert any(body.get("continue_final_message") for body in bodies)
        assert any("prompt" in body and "add_special_tokens" in body for body in bodies)  # what was said, as tokens
        assert {body["model"] for body in bodies} == {"terse@1"}


async def test_the_cache_gives_no_answer_of_another_version(tmp_path: Path) -> None:
    adapter(tmp_path, "terse@1")
    adapter(tmp_path, "terse@2")
    async with asking(tmp_path, response_cache={"enabled": True}) as asked:
        said = []
        for version in ("terse@1", "terse@1", "terse@2", "terse@1"):
            asked.go(version)
            headers, answer = await asked.ask(temperature=0)
            said.append((headers[b"x-penstock-cache"], json.loads(answer)["model"]))
            assert headers[VERSION] == version.encode()
    assert said == [(b"miss", "terse@1"), (b"hit", "terse@1"), (b"miss", "terse@2"), (b"hit", "terse@1")]


async def test_what_another_version_answered_than_was_asked_for_is_not_kept(tmp_path: Path) -> None:
    """Requests wait for a place; meanwhile the version moves."""
    adapter(tmp_path, "terse@1")
    adapter(tmp_path, "terse@2")
    async with asking(tmp_path, response_cache={"enabled": True}) as asked:
        asked.only_one_at_once()
        asked.go("terse@1")
        first = asyncio.create_task(asked.ask())
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(asked.ask(temperature=0))
        await asyncio.sleep(0.1)
        asked.go("terse@2")
        await first
        headers, _ = await waiting
        assert headers[VERSION] == b"terse@2"
        asked.go("terse@1")
        headers, _ = await asked.ask(temperature=0)
        assert (headers[VERSION], headers[b"x-penstock-cache"]) == (b"terse@1", b"miss")


async def test_an_idempotency_key_is_a_promise_of_one_answer(tmp_path: Path) -> None:
    adapter(tmp_path, "terse@1")
    adapter(tmp_path, "terse@2")
    async with asking(tmp_path) as asked:
        said = []
        for version in ("terse@1", "terse@2"):
            asked.go(version)
            headers, answer = await asked.ask({b"idempotency-key": b"order-7"})
            said.append((headers[VERSION], answer))
    assert said[0] == said[1]


async def test_who_has_waited_is_sent_where_the_route_leads_then(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        asked.only_one_at_once()
        asked.go(None, "base@1")
        first = asyncio.create_task(asked.ask())
        await asyncio.sleep(0.1)
        exchange = received()
        waiting = asked.gateway.take(exchange)
        assert waiting
        assert exchange.status is None
        there = asked.relay.current.pool
        asked.relay.current = Route(there, None, "base@2")
        await first
        await waiting
        assert dict(exchange._headers)[VERSION] == b"base@2"
