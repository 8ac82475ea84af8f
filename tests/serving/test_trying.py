"""Versions of canaries beside those that serve: made ready, split, taken over or ended, with engines as processes."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from penstock import metrics
from penstock.config import Config
from penstock.home import home
from penstock.references import Reference
from registry.aliases import all_aliases
from registry.canaries import Canary, Rules, end, last, start
from registry.canary_figures import read
from serving import trials as module
from serving.trials import Trials
from tests.reliability.client import Caller
from tests.reliability.conftest import until
from tests.serving.moved import ASK, VERSION, Moved, Registry, moved, tree
from tests.serving.test_moving import adapted, engines_of, entries, known, left_in_run, soon, unsurprised

__all__ = ["known", "soon", "unsurprised"]
pytestmark = pytest.mark.anyio

RULES = Rules(least_requests=60, least_s=0, errors_margin=0.15, refusals_margin=0.15, latency_ratio=3, length_ratio=3)
NEVER = Rules(least_s=3600)
SOON = Rules(least_s=0, longest_s=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.1)


@dataclass
class Tried:
    """A gateway that splits, and what its clients were told: each conversation's versions, in their order."""

    running: Moved
    trials: Trials
    versions: dict[int, list[str]] = field(default_factory=dict)

    async def ask(self, caller: Caller, number: int, model: str = "m") -> None:
        body = ASK | {"model": model, "messages": [{"role": "user", "content": f"Number {number}"}], "stream": True}
        versions = self.versions
        said = await caller.ask(body)
        assert (said.status, said.error, said.done) == (200, None, True), said.body
        versions.setdefault(number, []).append(said.headers[VERSION])

    @asynccontextmanager
    async def load(self, model: str = "m", callers: int = 4) -> AsyncIterator[None]:
        """Forty conversations, again and again, while the block runs: none fails and none is cut."""
        over = asyncio.Event()

        async def call(first: int) -> None:
            async with Caller(self.running.url) as caller:
                while not over.is_set():
                    for number in range(first, 40, callers):
                        await self.ask(caller, number, model)

        async with asyncio.TaskGroup() as tasks:
            for first in range(callers):
                tasks.create_task(call(first))
            yield
            over.set()

    def anew(self) -> None:
        """What was asked before this is not looked at, though it be answered later."""
        self.versions = {}

    def seen(self) -> set[str]:
        return {version for versions in self.versions.values() for version in versions}


@asynccontextmanager
async def tried(known: Registry, tree: dict[str, Any]) -> AsyncIterator[Tried]:
    async with moved(known, tree) as running:
        trials = Trials(known.store)
        trials.joined(running.stack)
        task = asyncio.create_task(trials.run())
        try:
            yield Tried(running, trials)
        finally:
            task.cancel()
            await asyncio.wait([task])


async def begun(known: Registry, reference: str, number: int, rules: Rules = RULES) -> Canary:
    name, _, alias = reference.partition("@")
    return await start(known.store, alias, Reference(name, number), 50, "me", rules)


async def outcome(known: Registry, name: str = "demo", within_s: float = 20) -> Canary:
    async with asyncio.timeout(within_s):
        while (now := await last(known.store, name, "production")).runs:
            await asyncio.sleep(0.05)
    return now


async def test_a_good_version_of_a_whole_model_takes_over_with_the_replicas_that_were_tried(
    known: Registry, tmp_path: Path
) -> None:
    await known.whole(tokens=20)
    async with tried(known, tree(tmp_path)) as here:
        before = here.running.engines.current["base"]
        async with here.load():
            await begun(known, "demo@production", 2)
            await until(lambda: "base" in here.running.engines.tried)
            generation = here.running.engines.tried["base"]
            assert (await outcome(known)).outcome == "on"
            await until(lambda: here.running.engines.current["base"] is generation)
            await here.running.until_version("demo@2")
            await until(
                lambda: not any(supervisor.replica in here.running.engines.living for supervisor in before.supervisors)
            )
        assert here.running.engines.tried == {}
        assert [generation] == here.running.engines._living
        assert len(engines_of(home())) == 1
        assert here.seen() == {"demo@1", "demo@2"}
        for versions in here.versions.values():  # a conversation may go back once, when the split ends before the move
            assert sum(before != after for before, after in pairwise(versions)) <= 3
    assert (await all_aliases(known.store, "demo"))[0].version == 2
    assert left_in_run() == []


async def test_a_slow_version_goes_back_and_its_replicas_end(known: Registry, tmp_path: Path) -> None:
    await known.whole(tokens=20, itl_s=0.03)
    async with tried(known, tree(tmp_path)) as here:
        current = here.running.engines.current["base"]
        async with here.load(callers=8):
            canary = await begun(known, "demo@production", 2)
            now = await outcome(known)
            await until(lambda: here.running.engines._living == [current])
        assert now.outcome == "back"
        assert now.verdict
        assert now.verdict["reasons"][0].startswith("whole answer, seconds")
        assert await here.running.version() == "demo@1"
        assert len(engines_of(home())) == 1
        both = await read(known.store, canary.id)
        assert both.stable.errors == both.canary.errors == both.stable.gone == both.canary.gone == 0
    assert (await all_aliases(known.store, "demo"))[0].version == 1


async def test_a_version_that_does_not_start_goes_back_at_once_with_the_reason(known: Registry, tmp_path: Path) -> None:
    await known.whole(broken=True)
    async with tried(known, tree(tmp_path)) as here:
        async with here.load():
            await begun(known, "demo@production", 2)
            now = await outcome(known)
        assert now.outcome == "back"
        assert now.verdict
        assert "cannot serve it" in now.verdict["reasons"][0]
        assert here.seen() == {"demo@1"}
        assert here.running.engines.tried == {}


async def test_an_adapter_is_tried_and_taken_over_and_another_one_is_stopped_and_unloaded(
    known: Registry, tmp_path: Path
) -> None:
    await known.adapter("terse", "demo@1")
    await known.adapter("terse", "demo@1")
    async with tried(known, adapted(tmp_path)) as here:
        async with here.load("terse"):
            await begun(known, "terse@production", 2)
            assert (await outcome(known, "terse")).outcome == "on"
            await here.running.until_version("terse@2", "terse")
        assert here.seen() == {"terse@1", "terse@2"}
        here.anew()
        async with here.load("terse"):
            canary = await begun(known, "terse@production", 3, NEVER)
            await until(lambda: "terse@3" in here.seen())
            await end(known.store, canary.id, "stopped", "me")
            await until(lambda: not here.running.moving.served.versions.canaries)
            here.anew()
            await asyncio.sleep(0.3)
        assert here.seen() == {"terse@2"}
        (generation,) = here.running.engines._living
        assert generation.lora
        folder = generation.lora.folder
        await until(lambda: not (folder / "terse@3").exists())
        assert (folder / "terse@2").exists()


async def test_an_adapter_of_another_base_goes_back_at_once(known: Registry, tmp_path: Path) -> None:
    await known.whole()
    await known.adapter("terse", "demo@2")
    async with tried(known, adapted(tmp_path)) as here:
        await begun(known, "terse@production", 2)
        now = await outcome(known, "terse")
        assert now.verdict
        assert "terse@2 is made for demo@2, and its engine serves demo@1" in now.verdict["reasons"][0]
        assert await here.running.version("terse") == "terse@1"


async def test_a_version_that_never_gets_ready_goes_back_when_its_time_is_over(known: Registry, tmp_path: Path) -> None:
    await known.whole(slow=30)
    async with tried(known, tree(tmp_path)) as here:
        await begun(known, "demo@production", 2, SOON)
        now = await outcome(known)
        assert (now.outcome, here.running.engines.tried) == ("back", {})
        assert now.verdict
        assert "it could not be asked within longest_s (2 s): it is still starting" in now.verdict["reasons"][0]
        await until(lambda: len(here.running.engines.living) == 1)
        assert len(engines_of(home())) == 1


async def test_an_adapter_whose_engine_is_never_ready_goes_back_when_its_time_is_over(
    known: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await known.adapter("terse", "demo@1")
    async with tried(known, adapted(tmp_path)) as here:
        here.running.engines.all[0].replica.drain()
        await begun(known, "terse@production", 2, SOON)
        now = await outcome(known, "terse")
        assert now.verdict
        (why,) = now.verdict["reasons"]
        assert why.endswith("it could not be asked within longest_s (2 s): base-0: not ready")
        assert f"the canary of terse@production goes back: {why}" in caplog.text
        (entry,) = await entries(known, "canary.ended")
        assert "base-0: not ready" in entry


async def test_a_gateway_that_starts_in_the_midst_splits_too_and_one_that_ends_leaves_nothing(
    known: Registry, tmp_path: Path
) -> None:
    await known.whole(tokens=20)
    canary = await begun(known, "demo@production", 2, NEVER)
    async with tried(known, tree(tmp_path)) as here, here.load():
        await until(lambda: "demo@2" in here.seen())
    assert left_in_run() == []
    assert engines_of(home()) == []
    assert (await last(known.store, "demo", "production")) == canary


async def test_a_model_that_the_configuration_adds_meanwhile_is_answered_by_both_versions(
    known: Registry, tmp_path: Path
) -> None:
    """The replicas of neither were started with its name."""
    await known.whole(tokens=20)
    async with tried(known, tree(tmp_path)) as here:
        await begun(known, "demo@production", 2, NEVER)
        await until(lambda: "base" in here.running.engines.tried)
        config = Config(**tree(tmp_path, models={"m": {"engine": "base"}, "later": {"engine": "base"}}))
        await here.running.moving.prepare(config)
        here.running.moving.apply(config)
        async with here.load("later"):
            await until(lambda: here.seen() == {"demo@1", "demo@2"})


async def test_a_model_that_changes_its_engine_is_split_there_when_both_versions_are_loaded(
    known: Registry, tmp_path: Path
) -> None:
    await known.adapter("terse", "demo@1")
    first = adapted(tmp_path)
    first["engines"]["other"] = first["engines"]["base"] | {"options": {"enable-lora": True}}
    first["models"]["n"] = {"engine": "other"}
    config = Config(**{**first, "models": first["models"] | {"terse": first["models"]["terse"] | {"engine": "other"}}})
    async with tried(known, first) as here, here.load("terse"):
        canary = await begun(known, "terse@production", 2, NEVER)
        await until(lambda: here.seen() == {"terse@1", "terse@2"})
        await here.running.moving.prepare(config)
        here.running.moving.apply(config)
        here.anew()
        await until(lambda: here.seen() == {"terse@1", "terse@2"})
        await end(known.store, canary.id, "stopped", "me")
        folder = next((home() / "run").glob("*/base-0.adapters"))
        await until(lambda: not list(folder.iterdir()))


async def test_canaries_that_end_while_they_start_leave_nothing(known: Registry, tmp_path: Path) -> None:
    """The second would be ready while the first is waited for."""
    await known.whole(slow=30, stubborn=True)
    await known.whole("next")
    await known.point("next@production", 1)
    await known.whole("next", slow=0.5)
    two = tree(tmp_path, models={"m": {"engine": "base"}, "n": {"engine": "next"}})
    two["engines"]["base"]["stop_s"] = 1.5
    two["engines"]["next"] = two["engines"]["base"] | {"model": "registry:next@production"}
    async with tried(known, two) as here:
        engines = here.running.engines
        canaries = [await begun(known, f"{name}@production", 2, NEVER) for name in ("demo", "next")]
        await until(lambda: len(engines._living) == 4)
        for canary in canaries:
            await end(known.store, canary.id, "stopped", "me")
        await until(lambda: engines._living == list(engines.current.values()))
        assert engines.tried == {}
        assert len(engines_of(home())) == 2
        assert (await here.running.version(), await here.running.version("n")) == ("demo@1", "next@1")


async def test_an_adapter_for_the_base_that_serves_does_not_wait_for_one_that_lacks_a_canarys_memory(
    known: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for slow in (30, 0):
        await known.whole(memory=str(tmp_path / "memory"), slow=slow)
    for base in (3, 1):
        await known.adapter("terse", f"demo@{base}")
    await known.point("demo@staging", 1)
    two = adapted(tmp_path)
    two["engines"]["next"] = two["engines"]["base"] | {"model": "registry:demo@staging"}
    two["models"]["n"] = {"engine": "next"}
    async with moved(known, two) as here:
        await begun(known, "demo@staging", 2, NEVER)
        await until(lambda: len(here.engines.living) == 3)
        await known.point("terse@production", 2)
        await known.point("demo@production", 3)
        await until(lambda: "demo@3, which will be tried again: too little memory until one of next-1" in caplog.text)
        await known.point("terse@production", 3)
        await here.until_version("terse@3", "terse")
        assert await here.version() == "demo@1"
        assert "the adapter of the model terse does not fit demo@3" in caplog.text
        assert (metrics.alias_refused.values[("engines.base",)], len(here.engines.living)) == (1, 3)


async def test_a_canary_waits_until_the_one_before_has_taken_over_and_leaves_it_its_replicas(
    known: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await known.whole(tokens=20)
    await known.whole(tokens=20)
    async with tried(known, tree(tmp_path)) as here:
        engines = here.running.engines
        await begun(known, "demo@production", 2, NEVER)
        await until(lambda: "base" in engines.tried)
        first = engines.tried["base"]
        assert first.supervisors[0].process
        first.supervisors[0].process.kill()
        await until(lambda: not first.replicas[0].ready)
        await known.point("demo@production", 2)
        await until(lambda: "leads to demo@2, which will be tried again: base-1: not ready" in caplog.text)
        await begun(known, "demo@production", 3, NEVER)
        await until(lambda: engines.tried["base"].version == "demo@3" if "base" in engines.tried else False, 15)
        assert engines.current["base"] is first
        await until(lambda: engines._living == [first, engines.tried["base"]])
        assert len(engines_of(home())) == 2


async def test_an_adapter_that_is_stopped_while_it_loads_leaves_nothing(known: Registry, tmp_path: Path) -> None:
    await known.adapter("terse", "demo@1")
    async with tried(known, adapted(tmp_path)) as here:
        generation = here.running.engines.current["base"]
        await until(lambda: ("base", "terse@1") in here.running.moving.loaded.warm)
        process = generation.supervisors[0].process
        assert process
        assert generation.lora
        loading = generation.lora.folder / "terse@2"
        process.send_signal(signal.SIGSTOP)
        try:
            canary = await begun(known, "terse@production", 2, NEVER)
            await until(loading.exists)
            await end(known.store, canary.id, "stopped", "me")
            await until(lambda: not here.running.moving.loaded.loading)
        finally:
            process.send_signal(signal.SIGCONT)
        await until(lambda: not loading.exists())
        assert await here.running.version("terse") == "terse@1"


async def test_an_alias_that_moves_elsewhere_ends_its_canary_and_the_other_version_is_served(
    known: Registry, tmp_path: Path
) -> None:
    await known.whole(tokens=20)
    await known.whole(tokens=20)
    async with tried(known, tree(tmp_path)) as here, here.load():
        await begun(known, "demo@production", 2, NEVER)
        await until(lambda: "demo@2" in here.seen())
        await known.point("demo@production", 3)
        await here.running.until_version("demo@3")
        await until(lambda: len(here.running.engines._living) == 1)
        assert (await last(known.store, "demo", "production")).outcome == "overtaken"
