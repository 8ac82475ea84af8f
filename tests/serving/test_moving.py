"""Versions that move under a gateway at work: adapters and whole models, under load, in quick succession, damaged."""

import asyncio
import itertools
import json
import math
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.sim import simulator
from penstock import audit, metrics
from penstock.config import Config
from penstock.errors import ConfigError, StartError, StateUnavailable
from penstock.home import home
from registry.artifacts import Artifacts
from registry.local_copy import Placed
from registry.resolve import placed
from registry.versions import Version
from serving import loaded, stack
from serving.engines import engines_here
from tests.conftest import arguments
from tests.reliability.conftest import until
from tests.serving.moved import QUICK, Moved, Registry, moved, registry, simulated, tree, without_figures

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home and figures of its own, and what is left lingers less. Its sockets' paths must be short."""
    without_figures()
    for module in (stack, loaded):
        monkeypatch.setattr(module, "LINGER_S", 0.1)
    with tempfile.TemporaryDirectory(prefix="p-") as place:
        monkeypatch.setenv("PENSTOCK_HOME", place)
        yield


@pytest.fixture(autouse=True)
def unsurprised(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    surprises = [record for record in caplog.get_records("call") if record.name == "asyncio" or record.exc_info]
    assert not surprises, [record.getMessage() for record in surprises]


@pytest.fixture
async def known(tmp_path: Path) -> AsyncIterator[Registry]:
    """`demo@production` is demo@1; `terse@production` is terse@1, made for it."""
    async with registry(tmp_path) as known:
        await known.whole(tokens=20)
        await known.point("demo@production", 1)
        await known.adapter("terse", "demo@1")
        await known.point("terse@production", 1)
        yield known


def adapted(tmp_path: Path) -> dict[str, Any]:
    models = {"m": {"engine": "base"}, "terse": {"engine": "base", "adapter": "registry:terse@production"}}
    return tree(tmp_path, models=models)


def engines_of(folder: Path) -> list[int]:
    """The processes whose socket is in this home."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [pid for pid in pids if any(f"{folder}/run/" in word for word in arguments(pid))]


def left_in_run() -> list[str]:
    return [file.name for file in (home() / "run").glob("*/*")]


def gauged() -> set[tuple[str | int, ...]]:
    """The replicas of these tests that have figures."""
    return {labels for labels in metrics.engine_ready.values if labels[0] == "base"}


async def entries(known: Registry, action: str) -> list[str]:
    return [entry.details for entry in await audit.entries(known.store) if entry.action == action]


async def test_an_adapter_moves_under_load_and_back(known: Registry, tmp_path: Path) -> None:
    await known.adapter("terse", "demo@1")
    async with moved(known, adapted(tmp_path)) as here:
        assert (await here.ask("terse")).json["model"] == "terse@1"
        assert await here.version() == "demo@1"
        async with here.load("terse", "m"):
            await here.until_version("terse@1", "terse")
            await known.point("terse@production", 2)
            await here.until_version("terse@2", "terse", within_s=2)
            await known.point("terse@production", 1)
            await here.until_version("terse@1", "terse", within_s=2)
        assert {*here.versions_answered()} == {"demo@1", "terse@1", "terse@2"}
        assert here.engines.replicas["base"][0].name == "base-0"  # the same process
        assert metrics.model_version.values == {("m", "demo@1"): 1, ("terse", "terse@1"): 1}
    served = await entries(known, "version.served")
    assert served == ['{"from":"terse@1","to":"terse@2"}', '{"from":"terse@2","to":"terse@1"}']


async def test_what_is_neither_present_nor_the_last_is_unloaded_when_nothing_runs_on_it(
    known: Registry, tmp_path: Path
) -> None:
    """A reload that was refused has loaded one, which counts as neither."""
    for _ in range(3):
        await known.adapter("terse", "demo@1")

    async def refused(here: Moved) -> None:
        models = {name: {"engine": "base", "adapter": f"registry:{name}@2"} for name in ("terse", "none")}
        with pytest.raises(ConfigError, match=r"models.none: registry:none@2: "):
            await here.moving.prepare(Config(**adapted(tmp_path) | {"models": models}))

    async with moved(known, adapted(tmp_path)) as here:
        folder = next((home() / "run").glob("*/base-0.adapters"))
        slow = asyncio.create_task(here.ask("terse", stream=True, max_tokens=4000, ignore_eos=True))
        await asyncio.sleep(0.1)
        for number in (2, 3, 4):
            if number == 4:
                await refused(here)
            await known.point("terse@production", number)
            await here.until_version(f"terse@{number}", "terse", within_s=2)
        await until(lambda: {file.name for file in folder.iterdir()} == {"terse@1", "terse@3", "terse@4"})
        assert here.stack.leaving() == {"base/terse@1"}
        assert (await slow).done
        await until(lambda: {file.name for file in folder.iterdir()} == {"terse@3", "terse@4"})
        listed = await here.engines.replicas["base"][0].client.ask("GET", "/v1/models", timeout_s=5)
        assert [name for name in ("terse@1", "terse@2", "terse@3", "terse@4") if name.encode() in listed.body] == [
            "terse@3",
            "terse@4",
        ]


async def test_what_another_model_is_served_from_stays_loaded(known: Registry, tmp_path: Path) -> None:
    """Its own alias leads to what is refused, while that of the first model moves on, again and again."""
    for _ in range(3):
        await known.adapter("terse", "demo@1")
    await known.adapter("terse", "demo@1", peft_type="PREFIX_TUNING")
    await known.point("terse@staging", 1)
    both = adapted(tmp_path)
    both["models"]["next"] = {"engine": "base", "adapter": "registry:terse@staging"}
    async with moved(known, both) as here:
        folder = next((home() / "run").glob("*/base-0.adapters"))
        await known.point("terse@staging", 5)
        await until(lambda: metrics.alias_refused.values.get(("models.next",)) == 1)
        for number in (2, 3, 4):
            await known.point("terse@production", number)
            await here.until_version(f"terse@{number}", "terse", within_s=2)
        await until(lambda: {file.name for file in folder.iterdir()} == {"terse@1", "terse@3", "terse@4"})
        assert await here.version("next") == "terse@1"


async def test_an_engine_that_was_restarted_finds_its_adapters_by_itself(known: Registry, tmp_path: Path) -> None:
    await known.adapter("terse", "demo@1")
    async with moved(known, adapted(tmp_path)) as here:
        await known.point("terse@production", 2)
        await here.until_version("terse@2", "terse")
        supervisor = here.engines.all[0]
        assert supervisor.process
        supervisor.process.kill()
        await until(lambda: not supervisor.replica.ready)
        assert await here.version("terse") == "terse@2"
        assert supervisor.restarts == 1


async def test_a_whole_model_moves_under_load_and_nothing_is_left(known: Registry, tmp_path: Path) -> None:
    await known.whole(tokens=60)
    config = tree(tmp_path)
    config["engines"]["base"] |= {"replicas": 2}
    async with moved(known, config) as here:
        async with here.load(callers=6):
            await here.until_version("demo@1")
            before = engines_of(home())
            await known.point("demo@production", 2)
            await here.until_version("demo@2")
        assert here.versions_answered() == ["demo@1", "demo@2"]
        assert [replica.name for replica in here.engines.replicas["base"]] == ["base-2", "base-3"]
        await until(lambda: not {*before} & {*engines_of(home())})
        assert len(engines_of(home())) == 2
        assert len(left_in_run()) == 2
        await until(lambda: gauged() == {("base", "2"), ("base", "3")})
        texts = {said.headers["x-penstock-model-version"]: said.text for said in here.answers if said.done}
        assert texts["demo@1"] != texts["demo@2"]
    assert not left_in_run()
    assert not engines_of(home())


async def test_a_stream_that_is_longer_than_a_move_ends_where_it_began(known: Registry, tmp_path: Path) -> None:
    await known.whole()
    async with moved(known, tree(tmp_path)) as here:
        slow = asyncio.create_task(here.ask(stream=True, max_tokens=2500, ignore_eos=True))
        await asyncio.sleep(0.2)
        await known.point("demo@production", 2)
        await here.until_version("demo@2")
        assert not slow.done()
        assert here.stack.leaving() == {"base-0"}
        said = await slow
        assert (said.done, said.headers["x-penstock-model-version"]) == (True, "demo@1")
        await until(lambda: len(engines_of(home())) == 1)


async def test_of_many_moves_in_quick_succession_the_last_counts_and_nothing_leaks(
    known: Registry, tmp_path: Path
) -> None:
    for tokens in (10, 40, 80):
        await known.whole(tokens=tokens)
    async with moved(known, tree(tmp_path)) as here:
        async with here.load():
            for number in (2, 3, 4, 2, 3, 1, 4):
                await known.point("demo@production", number)
                await asyncio.sleep(0.15)
            await here.until_version("demo@4")
            await known.point("demo@production", 3)
            await here.until_version("demo@3")
        await until(lambda: len(engines_of(home())) == 1)
        assert len(left_in_run()) == 1
        await until(lambda: len(gauged()) == 1)
        assert len(here.engines.living) == 1


async def test_a_version_that_does_not_start_leaves_the_one_before_and_says_why(
    known: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await known.whole(broken=True)
    await known.whole(tokens=50)
    async with moved(known, tree(tmp_path)) as here:
        async with here.load():
            await known.point("demo@production", 2)
            await until(lambda: metrics.alias_refused.values.get(("engines.base",)) == 1)
            assert await here.version() == "demo@1"
        assert here.versions_answered() == ["demo@1"]
        assert "leads to demo@2, which is not served" in caplog.text
        (refused,) = await entries(known, "version.refused")
        assert '"version":"demo@2"' in refused
        assert "is not a valid model identifier" in refused or "no such model" in refused or "/m" in refused
        assert len(engines_of(home())) == 1
        await asyncio.sleep(0.6)
        assert len(await entries(known, "version.refused")) == 1  # it is not tried again and again
        await known.point("demo@production", 3)
        await here.until_version("demo@3")
        assert metrics.alias_refused.values[("engines.base",)] == 0


async def test_a_version_that_lacks_the_memory_of_one_that_is_ending_is_started_when_that_has_ended(
    known: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for memory in (str(tmp_path / "memory"), None, str(tmp_path / "memory"), str(tmp_path / "memory")):
        await known.whole(memory=memory, itl_s=0.02)
    await known.point("demo@production", 2)
    async with moved(known, tree(tmp_path)) as here:
        slow = asyncio.create_task(here.ask(stream=True, max_tokens=4000, ignore_eos=True))
        await asyncio.sleep(0.2)
        await known.point("demo@production", 3)
        await here.until_version("demo@3")
        await known.point("demo@production", 4)
        await until(lambda: "demo@4, which will be tried again: too little memory until one of base-0" in caplog.text)
        assert metrics.alias_refused.values[("engines.base",)] == 1
        assert not slow.done()
        slow.cancel()
        await asyncio.wait([slow])
        await here.until_version("demo@4")
        assert metrics.alias_refused.values[("engines.base",)] == 0
        assert not await entries(known, "version.refused")
        await known.point("demo@production", 5)  # while it serves, that which has the memory does not end
        async with asyncio.timeout(10):
            while not (refused := await entries(known, "version.refused")):
                await asyncio.sleep(0.05)
        assert "the memory does not suffice" in refused[0]
        await until(lambda: len(engines_of(home())) == 1)
        assert await here.version() == "demo@4"


async def test_what_cannot_be_an_engines_model_is_refused_while_it_runs(known: Registry, tmp_path: Path) -> None:
    await known.adapter("demo", "demo@1")
    damaged = await known.whole()
    known.artifacts.delete(damaged.files.files["model.safetensors"].sha256)
    async with moved(known, tree(tmp_path)) as here:
        for number, why in ((2, "is an adapter"), (3, "is gone")):
            await known.point("demo@production", number)
            async with asyncio.timeout(5):
                while not any(why in entry for entry in await entries(known, "version.refused")):
                    await asyncio.sleep(0.05)
            assert await here.version() == "demo@1"


async def test_an_adapter_that_engines_do_not_take_is_refused_and_the_one_before_serves_on(
    known: Registry, tmp_path: Path
) -> None:
    await known.whole()
    await known.adapter("terse", "demo@1", r=64)
    await known.adapter("terse", "demo@2")
    await known.adapter("terse", None)
    await known.adapter("terse", "demo@1", peft_type="PREFIX_TUNING")
    await known.adapter("terse", "demo@1", rank_pattern=[8])
    await known.adapter("terse", "demo@1", lora_dropout=math.nan)
    reasons = {
        2: "has the rank 64, and the engine base was started for at most 16",
        3: "is made for demo@2, and its engine serves demo@1",
        4: "does not say which model it was made for",
        5: "is a PREFIX_TUNING adapter",
        6: "adapter_config.json must have a rank `r`",
    }
    async with moved(known, adapted(tmp_path)) as here:
        async with here.load("terse"):
            for number, why in reasons.items():
                await known.point("terse@production", number)
                async with asyncio.timeout(5):
                    while not any(why in entry for entry in await entries(known, "version.refused")):
                        await asyncio.sleep(0.05)
            assert metrics.alias_refused.values[("models.terse",)] == 1
            await known.point("terse@production", 7)
            await here.until_version("terse@7", "terse")
        assert here.versions_answered() == ["terse@1", "terse@7"]
        assert len(await entries(known, "version.refused")) == len(reasons)


async def test_a_base_and_its_adapter_move_together_when_both_aliases_have(known: Registry, tmp_path: Path) -> None:
    await known.whole(tokens=50)
    await known.adapter("terse", "demo@2")
    async with moved(known, adapted(tmp_path)) as here:
        async with here.load("terse", "m"):
            await known.point("demo@production", 2)
            async with asyncio.timeout(5):
                while not any("does not fit demo@2" in entry for entry in await entries(known, "version.refused")):
                    await asyncio.sleep(0.05)
            assert (await here.version(), await here.version("terse")) == ("demo@1", "terse@1")
            await known.point("terse@production", 2)
            await here.until_version("terse@2", "terse")
            assert await here.version() == "demo@2"
        assert len([entry for entry in here.answers if entry.headers["x-penstock-model-version"] == "terse@2"]) > 0
        assert not any(metrics.alias_refused.values.values())


async def test_an_adapter_that_waits_for_an_engine_that_is_down_keeps_no_base_from_moving(
    known: Registry, tmp_path: Path
) -> None:
    await known.whole()
    await known.adapter("terse", "demo@1")
    await known.adapter("terse", "demo@2")
    async with moved(known, adapted(tmp_path)) as here:
        here.engines.all[0].replica.drain()
        await known.point("terse@production", 2)
        await asyncio.sleep(0.6)
        assert here.moving.served.versions.adapters == {"terse": "terse@1"}
        await known.point("demo@production", 2)
        await known.point("terse@production", 3)
        await until(lambda: here.moving.served.versions.adapters == {"terse": "terse@3"})
        assert (await here.version(), await here.version("terse")) == ("demo@2", "terse@3")


async def test_a_base_that_was_refused_for_its_adapter_is_served_when_the_adapter_is_mended(
    known: Registry, tmp_path: Path
) -> None:
    await known.whole()
    await known.adapter("terse", "demo@2", peft_type="IA3")
    await known.adapter("terse", "demo@2")
    async with moved(known, adapted(tmp_path)) as here:
        await known.point("terse@production", 2)
        await known.point("demo@production", 2)
        async with asyncio.timeout(10):
            while not any(
                "of its adapters: terse@2 is a IA3" in each for each in await entries(known, "version.refused")
            ):
                await asyncio.sleep(0.05)
        assert await here.version("terse") == "terse@1"
        await known.point("terse@production", 3)
        await here.until_version("terse@3", "terse")
        assert await here.version() == "demo@2"


async def test_the_same_files_under_another_number_start_nothing(known: Registry, tmp_path: Path) -> None:
    known.made -= 2
    (tmp_path / "made" / "made-1").rename(tmp_path / "made" / "first")
    (tmp_path / "made" / "made-2").rename(tmp_path / "made" / "second")
    assert (await known.whole(tokens=20)).reference == "demo@2"
    async with moved(known, tree(tmp_path)) as here:
        before = engines_of(home())
        await known.point("demo@production", 2)
        await here.until_version("demo@2", within_s=3)
        assert engines_of(home()) == before


async def test_a_fixed_version_never_moves(known: Registry, tmp_path: Path) -> None:
    await known.whole()
    config = tree(tmp_path)
    config["engines"]["base"] |= {"model": "registry:demo@1"}
    async with moved(known, config) as here:
        await known.point("demo@production", 2)
        await asyncio.sleep(0.8)
        assert await here.version() == "demo@1"
        assert not here.moving.replacing.starting


async def test_models_with_adapters_come_and_go_with_the_configuration(known: Registry, tmp_path: Path) -> None:
    await known.adapter("sharp", "demo@1")
    await known.point("sharp@production", 1)
    await known.whole()
    await known.adapter("sharp", "demo@2")
    await known.adapter("terse", "demo@2")
    first = adapted(tmp_path)
    async with moved(known, first) as here:

        async def becomes(models: dict[str, Any]) -> None:
            config = Config(**{**first, "models": models})
            await here.moving.prepare(config)
            here.moving.apply(config)

        sharp = {"engine": "base", "adapter": "registry:sharp@production"}
        async with here.load("m"):
            await becomes({**first["models"], "sharp": sharp})
            assert await here.version("sharp") == "sharp@1"
            assert await here.version("terse") == "terse@1"
            with pytest.raises(ConfigError, match=r"models.two: registry:sharp@2: sharp@2 is made for demo@2, and"):
                await here.moving.prepare(
                    Config(**{**first, "models": {"two": {"engine": "base", "adapter": "registry:sharp@2"}}})
                )
            await known.point("terse@production", 2)
            await until(lambda: metrics.alias_refused.values.get(("models.terse",)) == 1)
            await becomes({"m": {"engine": "base"}, "sharp": sharp})
            assert ("models.terse",) not in metrics.alias_refused.values
        folder = next((home() / "run").glob("*/base-0.adapters"))
        await until(lambda: [file.name for file in folder.iterdir()] == ["sharp@1"])
        assert (await here.ask("terse")).status == 404
        assert (await here.ask("sharp@1")).status == 404  # a version's own name is nobody's to ask for
        assert ("terse", "terse@1") not in metrics.model_version.values


async def test_a_model_changes_its_engine_and_its_adapter_at_once(known: Registry, tmp_path: Path) -> None:
    """Until the configuration is another, nobody is asked for what only the other engine has loaded."""
    await known.adapter("sharp", "demo@1")
    await known.point("sharp@production", 1)
    first = adapted(tmp_path)
    first["engines"]["other"] = first["engines"]["base"] | {"options": {"enable-lora": True}}
    first["models"]["n"] = {"engine": "other"}
    async with moved(known, first) as here:
        sharp = {"engine": "other", "adapter": "registry:sharp@production"}
        config = Config(**{**first, "models": {**first["models"], "terse": sharp}})
        async with here.load("terse"):
            await here.moving.prepare(config)
            assert await here.version("terse") == "terse@1"
            here.moving.apply(config)
            assert await here.version("terse") == "sharp@1"
        assert here.versions_answered() == ["terse@1", "sharp@1"]
        folder = next((home() / "run").glob("*/base-0.adapters"))
        await until(lambda: not list(folder.iterdir()))


async def test_an_engine_that_was_started_without_adapters_takes_none(known: Registry, tmp_path: Path) -> None:
    async with moved(known, tree(tmp_path)) as here:
        with pytest.raises(ConfigError, match="was started without room for adapters: give it the option `enable-lora"):
            await here.moving.prepare(Config(**adapted(tmp_path)))
        assert await here.version() == "demo@1"


async def test_the_start_ends_with_what_cannot_be_served(known: Registry, tmp_path: Path) -> None:
    await known.whole()
    await known.point("demo@production", 2)
    with pytest.raises(StartError, match=r"models.terse: registry:terse@production: terse@1 is made for demo@1, and"):
        async with engines_here(Config(**adapted(tmp_path)), simulated):
            pass
    assert not left_in_run()


async def test_a_gateway_that_ends_in_the_midst_of_a_move_leaves_nothing(known: Registry, tmp_path: Path) -> None:
    await known.whole(slow=30)
    async with moved(known, tree(tmp_path)) as here:
        await known.point("demo@production", 2)
        await until(lambda: bool(here.moving.replacing.starting) and len(here.engines.living) == 2)
        await until(lambda: len(engines_of(home())) >= 2)
    assert not left_in_run()
    await until(lambda: not engines_of(home()))


async def test_an_alias_that_moves_back_before_the_start_is_over_changes_nothing(
    known: Registry, tmp_path: Path
) -> None:
    await known.whole(slow=30)
    async with moved(known, tree(tmp_path)) as here:
        async with here.load():
            await known.point("demo@production", 2)
            await until(lambda: len(here.engines.living) == 2)
            here.moving.look_again("base")  # for another reason: the start goes on, and later moves count
            await asyncio.sleep(0.3)
            assert len(here.engines.living) == 2
            await known.point("demo@production", 1)
            await until(lambda: len(here.engines.living) == 1)
        assert here.versions_answered() == ["demo@1"]
        assert len(engines_of(home())) == 1


async def test_the_cache_and_the_models_list_follow(known: Registry, tmp_path: Path) -> None:
    await known.adapter("terse", "demo@1")
    async with moved(known, {**adapted(tmp_path), "response_cache": {"enabled": True}}) as here:
        seen = []
        for number in (1, 2):
            await known.point("terse@production", number)
            await here.until_version(f"terse@{number}", "terse")
            for _ in range(2):
                said = await here.ask("terse", temperature=0)
                seen.append((said.json["model"], said.headers["x-penstock-cache"]))
        assert seen == [("terse@1", "miss"), ("terse@1", "hit"), ("terse@2", "miss"), ("terse@2", "hit")]


async def test_the_list_of_models_says_which_versions_they_are(known: Registry, tmp_path: Path) -> None:
    async with moved(known, adapted(tmp_path)) as here:
        listed = (await here.get("/v1/models"))["data"]
        assert {model["id"]: model["version"] for model in listed} == {"m": "demo@1", "terse": "terse@1"}
        assert (await here.get("/v1/models/terse"))["version"] == "terse@1"


def elsewhere(tmp_path: Path, shared: Path, *urls: str) -> dict[str, Any]:
    """`adapted`, with engines that are not started here and read adapters in `shared`."""
    config = adapted(tmp_path)
    config["registry"] |= {"adapters": str(shared)}
    config["engines"] = {"base": {"urls": list(urls), "probe": QUICK}}
    return config


async def test_engines_elsewhere_get_adapters_by_a_directory_that_they_share(known: Registry, tmp_path: Path) -> None:
    await known.adapter("terse", "demo@1")
    shared = tmp_path / "shared"
    shared.mkdir()
    async with (
        simulator(model="base", root="/models/demo", adapters=shared) as first,
        simulator(model="base", root="/models/demo", adapters=shared) as second,
    ):
        config = elsewhere(tmp_path, shared, first.url, second.url)
        async with moved(known, config) as here, here.load("terse", "m"):
            await here.until_version("terse@1", "terse")
            await known.point("terse@production", 2)
            await here.until_version("terse@2", "terse")
        assert here.versions_answered_by("terse") == ["terse@1", "terse@2"]
        assert all(set(sim.model.adapters.loaded) == {"terse@1", "terse@2"} for sim in (first, second))
        said = json.loads((shared / "terse@2" / "adapter_config.json").read_text())
        assert said["base_model_name_or_path"] == "/models/demo"


async def test_a_gateway_is_ready_when_engines_elsewhere_have_their_adapters(
    known: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slowly(artifacts: Artifacts, version: Version) -> Placed:
        await asyncio.sleep(1)
        return await placed(artifacts, version)

    monkeypatch.setattr(loaded, "placed", slowly)
    shared = tmp_path / "shared"
    shared.mkdir()
    async with simulator(model="base", root="/models/demo", adapters=shared) as sim:
        config = elsewhere(tmp_path, shared, sim.url)
        config["models"]["brief"] = config["models"]["terse"]
        async with moved(known, config) as here:
            assert set(sim.model.adapters.loaded) == {"terse@1"}
            assert await here.version("terse") == await here.version("brief") == "terse@1"
            assert await here.get("/ready") == {"ready": True, "engines": {"base": True}, "waiting": []}


@pytest.mark.parametrize("error", [StateUnavailable("the disk is away"), RuntimeError("nobody has thought of this")])
async def test_an_adapter_that_cannot_be_had_yet_is_not_waited_for_but_tried_again(
    error: Exception,
    known: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = itertools.count()

    async def at_the_second_try(artifacts: Artifacts, version: Version) -> Placed:
        if next(tries) == 0:
            raise error
        return await placed(artifacts, version)

    monkeypatch.setattr(loaded, "placed", at_the_second_try)
    shared = tmp_path / "shared"
    shared.mkdir()
    async with simulator(model="base", root="/models/demo", adapters=shared) as sim:
        config = elsewhere(tmp_path, shared, sim.url)
        async with moved(known, config) as here:
            assert not sim.model.adapters.loaded
            assert await here.version("m") is None  # it answers, and which version nobody here knows
            await until(lambda: "terse@1" in sim.model.adapters.loaded)
    assert [record for record in caplog.records if record.exc_info] == [
        record for record in caplog.records if record.message == "unexpected, in moving the engine base"
    ]
    caplog.clear()


async def test_engines_elsewhere_that_differ_are_given_no_adapter(known: Registry, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    async with (
        simulator(model="base", root="/models/demo", adapters=shared) as first,
        simulator(model="base", root="/models/other", adapters=shared) as second,
    ):
        config = elsewhere(tmp_path, shared, first.url, second.url)
        async with moved(known, config) as here:
            await until(lambda: all(replica.usable for replica in here.stack.pools["base"].replicas))
            here.moving.look_again("base")
            async with asyncio.timeout(5):
                while not any("serve different models" in each for each in await entries(known, "version.refused")):
                    await asyncio.sleep(0.05)
            assert not list(shared.iterdir())
