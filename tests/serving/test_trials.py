"""Canaries while gateways serve them: split, counted, judged by whoever comes first. The engines are simulated."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engine.room import Room
from engine.sim import Fault, simulator
from penstock import audit, metrics
from penstock.callers import LOCAL
from penstock.config import Config
from penstock.references import Reference
from penstock.store import Store, opened
from registry import canaries
from registry.adding import About, add
from registry.aliases import all_aliases, history, move
from registry.artifacts import artifacts_at
from registry.canaries import Canary, Rules, all_canaries, last, start
from registry.canary_figures import Both, Figures, read
from serving import trials as module
from serving.app import Gateway
from serving.recording import Recording
from serving.relay import Relay
from serving.stack import Stack, running
from serving.state import State, kept
from serving.versions import Versions
from tests.databases import Postgres, save
from tests.registry.conftest import safetensors

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
RULES = Rules(least_requests=60, least_s=0, errors_margin=0.15, refusals_margin=0.15, latency_ratio=3, length_ratio=3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.1)
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))


@pytest.fixture
async def store(database: str, tmp_path: Path) -> AsyncIterator[Store]:
    """With m@1, m@2 and m@production, which points to the first."""
    async with opened(database) as store:
        await registered(store, tmp_path)
        yield store


async def registered(store: Store, folder: Path) -> None:
    for seed in range(2):
        made = folder / f"model-{seed}"
        made.mkdir()
        (made / "config.json").write_text("{}")
        (made / "model.safetensors").write_bytes(safetensors(seed))
        await add(store, artifacts_at(str(folder / "kept")), made, About("m"), "me")
    await move(store, "production", Reference("m", 1), None, "me")


async def begun(store: Store, rules: Rules = RULES, percent: float = 50) -> Canary:
    return await start(store, "production", Reference("m", 2), percent, "me", rules)


@dataclass
class Serving:
    """A gateway whose model `m` has a trial."""

    gateway: Gateway
    stack: Stack
    state: State
    canary: Canary
    both: Both

    @property
    def relay(self) -> Relay:
        relay = self.stack.models["m"]
        assert isinstance(relay, Relay)
        return relay

    def arm(self, number: int) -> Figures:
        """Which counts the conversation of this number."""
        trial = self.relay.trial
        assert trial
        exchange = asked(number)
        exchange.tenant = LOCAL.tenant
        route = trial.route(self.relay.current, exchange, json.loads(exchange.whole(9999)))
        return trial.tally(route).figures

    def one_of(self, figures: Figures) -> int:
        return next(number for number in range(1000) if self.arm(number) is figures)

    def figures(self) -> object:
        return self.state.trials._counted[self.canary.id].figures

    async def ask(self, number: int, headers: Mapping[bytes, bytes] | None = None, **more: Any) -> Recording:
        exchange = asked(number, headers, **more)
        await self.gateway.answer(exchange)
        return exchange

    async def load(self, count: int, first: int = 0, stream: bool = True) -> list[Recording]:
        """So many conversations, twenty at a time."""
        answers = []
        for begin in range(first, first + count, 20):
            end = min(begin + 20, first + count)
            answers += await asyncio.gather(*(self.ask(number, stream=stream) for number in range(begin, end)))
        return answers


def asked(number: int, headers: Mapping[bytes, bytes] | None = None, **more: Any) -> Recording:
    exchange = Recording(CHAT, headers or {}, "", Room(2**20))
    body = {"model": "m", "messages": [{"role": "user", "content": f"Number {number}"}]}
    exchange.feed(json.dumps(body | more).encode())
    exchange.fed()
    return exchange


@asynccontextmanager
async def serving(database: str, canary: Canary, stable: str, other: str, **tree: Any) -> AsyncIterator[Serving]:
    """`stable` and `other` are where the engines of the two versions are."""
    usual = {"probe": {"interval_s": 0.2, "timeout_s": 1}, "routing": {"breaker_failures": 1000}}
    engines = {name: {"urls": [url], **usual} for name, url in {"e": stable, "c": other}.items()}
    models: dict[str, Any] = {"m": {"engine": "e"}, "c": {"engine": "c"}} | tree.pop("models", {})
    config = Config(engines=engines, models=models, state={"database": database}, **tree)
    async with kept(config) as state, running(config) as stack:
        gateway = Gateway(config, state.keys, state.ledger)
        async with gateway.admission:
            gateway.stack = stack
            state.trials.joined(stack)
            await stack.until_ready()
            versions = Versions({"e": "m@1"}, canaries={"m": canary.described()})
            stack.move({}, versions, {"e": stack.pools["c"].replicas})
            yield Serving(gateway, stack, state, canary, state.trials.begin(canary))


@asynccontextmanager
async def two(database: str, canary: Canary, *faults: Fault, **other: Any) -> AsyncIterator[list[Serving]]:
    """Gateways that share a database and the engines; `faults` and `other` are of the version that is tried."""
    async with (
        simulator(model="m") as stable,
        simulator(*faults, model="m", **other) as tried,
        AsyncExitStack() as stack,
    ):
        yield [await stack.enter_async_context(serving(database, canary, stable.url, tried.url)) for _ in range(2)]


async def until(holds: Callable[[], bool], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.02)


async def ended(store: Store, gateways: list[Serving]) -> Canary:
    """The canary, once both gateways know that it is over."""
    await until(lambda: not any(each.relay.trial for each in gateways))
    return await last(store, "m", "production")


async def test_a_good_version_goes_on_by_itself_and_takes_the_alias_over_once(database: str, store: Store) -> None:
    canary = await begun(store)
    async with two(database, canary) as (one, another):
        answers = await asyncio.gather(one.load(160), another.load(160, first=200))
        assert all(answer.status == 200 and answer.response_complete for both in answers for answer in both)
        versions = [dict(answer._headers).get(b"x-penstock-model-version") for both in answers for answer in both]
        assert 100 < versions.count(b"m@2") < 220
        now = await ended(store, [one, another])
    assert now.outcome == "on"
    assert now.ended_by == audit.this_process()
    assert now.verdict
    assert now.verdict["canary"] == "on"
    assert (await all_aliases(store))[0].version == 2
    moves = await history(store, "m")
    assert [(each.from_version, each.to_version, each.report == now.verdict) for each in moves[1:]] == [(1, 2, True)]
    actions = [entry.action for entry in await audit.last(store, 20)]
    assert (actions.count("alias.moved"), actions.count("canary.ended")) == (2, 1)
    both = await read(store, canary.id)
    assert both.stable.requests + both.canary.requests == 320
    assert both.canary.errors == both.stable.errors == both.canary.gone == 0
    assert both.canary.first.count == both.canary.length.count == both.canary.requests


@pytest.mark.parametrize(
    ("fault", "other", "reason"),
    [
        (Fault("status", status=500), {}, "errors: 0 before, 1 in the canary"),
        (Fault("cut", after=3), {}, "errors: 0 before, 1 in the canary"),
        (Fault("status", status=400), {}, "refusals: 0 before, 1 in the canary"),
        (None, {"ttft_s": 0.4}, "first token, seconds: "),
        (None, {"mean_tokens": 400}, "length, tokens"),
    ],
    ids=["failing", "cut", "refusing", "slow", "long"],
)
async def test_a_bad_version_goes_back_by_itself(
    tmp_path: Path, fault: Fault | None, other: dict[str, Any], reason: str
) -> None:
    database = f"sqlite:///{tmp_path / 'penstock.db'}"
    async with opened(database) as store:
        await registered(store, tmp_path)
        canary = await begun(store)
        async with two(database, canary, *([fault] if fault else []), **other) as (one, another):
            await asyncio.gather(one.load(80), another.load(80, first=200))
            now = await ended(store, [one, another])
            after = await one.load(20, first=900)
            assert all(answer.status == 200 and answer.response_complete for answer in after)
        assert now.outcome == "back"
        assert now.verdict
        assert now.verdict["reasons"][0].startswith(reason)
        assert (await all_aliases(store))[0].version == 1
        assert [entry.action for entry in await audit.last(store, 20)].count("canary.ended") == 1


async def test_what_ended_how_is_counted_as_what_it_is(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'penstock.db'}"
    async with opened(database) as store, simulator(model="m") as stable, simulator(model="m") as tried:
        await registered(store, tmp_path)
        canary = await begun(store, Rules(least_s=1000))
        limits = {"first_byte_timeout_s": 0.2, "first_token_timeout_s": 0.4, "stall_timeout_s": 0.3}
        async with serving(database, canary, stable.url, tried.url, gateway=limits) as here:
            figures = here.both.canary
            number = here.one_of(figures)
            await here.ask(number, stream=True)
            await here.ask(number)
            assert (figures.requests, figures.first.count, figures.whole.count, figures.length.count) == (2, 1, 2, 2)

            for fault in (Fault("cut", after=2), Fault("stall", after=2), Fault("error_event", after=2)):
                tried.faults[:] = [fault]
                await here.ask(number, stream=True)
            for fault in (Fault("hang"), Fault("reset"), Fault("status", status=503)):
                tried.faults[:] = [fault]
                await here.ask(number)
            assert (figures.requests, figures.errors, figures.whole.count) == (8, 6, 2)

            tried.faults[:] = [Fault("status", status=400)]
            await here.ask(number)
            assert (figures.requests, figures.errors, figures.refused) == (9, 6, 1)
            await here.ask(number, n=0)  # is refused here
            assert figures.requests == 9

            tried.faults[:] = [Fault("stall", after=2), Fault("stall_before_content")]
            for _ in range(2):
                leaving = asked(number, stream=True)
                answering = asyncio.create_task(here.gateway.answer(leaving))
                await until(lambda: bool(tried.running))
                await asyncio.sleep(0.05)
                leaving.leave()
                await answering
                tried.faults.pop()
            tried.faults[:] = [Fault("hang")]
            await here.ask(number, {b"x-request-timeout-s": b"0.05"})
            assert (figures.requests, figures.errors, figures.gone, figures.first.count) == (9, 6, 3, 2)
            assert here.both.stable == Figures()

            tried.faults.clear()
            await here.ask(here.one_of(here.both.stable))
            assert (here.both.stable.requests, figures.requests) == (1, 9)
        assert await read(store, canary.id) == here.both  # the last of it was written at the end


async def test_what_a_fallback_mends_is_still_the_version_s_error(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'penstock.db'}"
    fault = Fault("status", status=500)
    async with opened(database) as store, simulator(model="m") as stable, simulator(fault, model="m") as tried:
        await registered(store, tmp_path)
        canary = await begun(store, Rules(least_s=1000))
        models = {"m": {"engine": "e", "fallback": "f"}, "f": {"engine": "e"}}
        async with serving(database, canary, stable.url, tried.url, models=models) as here:
            answer = await here.ask(here.one_of(here.both.canary))
            assert answer.status == 200
            assert dict(answer.marks)[b"x-penstock-fallback"] == b"f"
            assert (here.both.canary.requests, here.both.canary.errors) == (1, 1)
            assert here.both.stable == Figures()


async def test_a_model_without_a_canary_and_a_reload_beside_one_change_nothing(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'penstock.db'}"
    async with opened(database) as store, simulator(model="m") as stable, simulator(model="m") as tried:
        await registered(store, tmp_path)
        canary = await begun(store, Rules(least_s=1000))
        async with serving(database, canary, stable.url, tried.url) as here:
            other = here.stack.models["c"]
            assert isinstance(other, Relay)
            assert other.trial is None
            tree = here.gateway.config.revealed()
            tree["models"]["new"] = {"engine": "e"}
            here.gateway.apply(Config(**tree))
            assert here.relay.trial
            assert here.relay.trial.canary == canary
            await here.load(20)
            assert here.both.canary.requests + here.both.stable.requests == 20


async def test_what_a_killed_gateway_had_written_counts_and_another_decides(database: str, store: Store) -> None:
    """Neither has seen enough alone."""
    canary = await begun(store, replace(RULES, least_requests=100))
    async with simulator(model="m") as stable, simulator(model="m") as tried:
        async with serving(database, canary, stable.url, tried.url) as killed:
            await killed.load(160)
            await until(lambda: killed.state.trials._counted[canary.id].written == killed.figures())
        seen = killed.both.canary.requests
        assert (await last(store, "m", "production")).runs
        async with serving(database, canary, stable.url, tried.url) as here:
            await here.load(160, first=300)
            assert max(seen, here.both.canary.requests) < 100
            assert (await ended(store, [here])).outcome == "on"
    assert (await all_aliases(store))[0].version == 2


async def test_requests_go_on_while_the_database_is_gone_and_what_was_counted_decides_afterwards(
    postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = await postgres.fresh()
    async with opened(database) as store:
        await registered(store, tmp_path)
        canary = await begun(store, Rules(least_requests=20, least_s=0))
    async with two(database, canary, Fault("status", status=500)) as (one, another):
        postgres.stop()
        try:
            await asyncio.gather(one.load(40), another.load(40, first=200))
            await until(lambda: "nothing is judged" in caplog.text)
            assert one.relay.trial
            assert one.both.canary.errors > 5
        finally:
            postgres.start()
        await until(lambda: not one.relay.trial and not another.relay.trial, 30)
        counted = one.both.canary.errors + another.both.canary.errors
    async with opened(database) as store:
        now = await last(store, "m", "production")
        assert now.outcome == "back"
        assert (await read(store, canary.id)).canary.errors == counted
    said = [record.getMessage() for record in caplog.records if "nothing is judged" in record.getMessage()]
    assert 1 <= len(said) <= 2  # once for each gateway


async def test_a_canary_that_a_restored_database_does_not_know_is_over(
    database: str, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = await save(database, tmp_path)
    canary = await begun(store)
    async with (
        simulator(model="m") as stable,
        simulator(model="m") as tried,
        serving(database, canary, stable.url, tried.url) as here,
    ):
        await here.load(10)
        await until(lambda: here.state.trials._counted[canary.id].written is not None)
        await saved.put_back()
        other = await begun(store, Rules(least_s=500))  # which has the number that the other had
        assert other.id == canary.id
        await until(lambda: not here.relay.trial)
        assert "is not in the database any more" in caplog.text
        assert [each.id for each in await all_canaries(store)] == [other.id]
        assert await read(store, other.id) == Both()


async def test_a_person_s_word_ends_it_everywhere_within_a_look(database: str, store: Store) -> None:
    canary = await begun(store, Rules(least_s=1000))
    async with two(database, canary) as (one, another):
        await one.load(20)
        await canaries.end(store, canary.id, "stopped", "me")
        now = await ended(store, [one, another])
        assert (now.outcome, now.ended_by) == ("stopped", "me")
        await until(lambda: not one.state.trials._counted)
    assert (await read(store, canary.id)).stable.requests == one.both.stable.requests > 0


async def test_figures_are_told_to_prometheus(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'penstock.db'}"
    key = ("m@production", "canary", "answered")
    before = metrics.canary_requests.values.get(key, 0)
    async with opened(database) as store, simulator(model="m") as stable, simulator(model="m") as tried:
        await registered(store, tmp_path)
        canary = await begun(store, Rules(least_s=1000))
        async with serving(database, canary, stable.url, tried.url) as here:
            await here.load(10)
            assert metrics.canary_requests.values[key] - before == here.both.canary.requests > 0
