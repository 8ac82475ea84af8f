"""A configuration that changes under a gateway at work: what moves, what stays, what is refused and how it is told."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
import yaml

from engine.replica import Replica
from engine.sim import Fault, Simulator, simulator
from penstock.config import Config
from penstock.source import Source, load
from serving.app import Gateway
from serving.protocol import HotProtocol
from serving.reload import Reload, differences, needing_a_restart
from serving.server import Server, bind
from serving.stack import composed, running
from tests.conftest import free_port
from tests.reliability.client import ask
from tests.reliability.conftest import ASK, STREAM, about, until

pytestmark = pytest.mark.anyio

KEY = "sk-0123456789abcdef"
OTHER = "another-key-of-the-file-0123"
FOLLOWED = {"kv_events": True}


@dataclass
class Followed:
    """A gateway that serves what is in `file`."""

    file: Path
    gateway: Gateway
    reload: Reload
    client: httpx2.AsyncClient

    @property
    def url(self) -> str:
        return str(self.client.base_url)

    async def becomes(self, tree: Any) -> None:
        """The file is another, and is read."""
        write(self.file, tree)
        await self.reload.again()


def write(file: Path, tree: Any) -> None:
    """Replaced by a rename, as editors do."""
    new = file.with_suffix(".new")
    new.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree, sort_keys=False))
    new.rename(file)


@asynccontextmanager
async def following(folder: Path, tree: dict[str, Any]) -> AsyncIterator[Followed]:
    file = folder / "penstock.yaml"
    write(file, tree)
    source = Source(file)
    config = source.load()
    gateway = Gateway(config)
    server = Server(
        uvicorn.Config(
            gateway, http=HotProtocol, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1
        )
    )
    with bind("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with running(config) as stack:
            gateway.stack = stack
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            await stack.until_ready()
            async with httpx2.AsyncClient(base_url=url, timeout=10, trust_env=False) as client:
                try:
                    yield Followed(file, gateway, Reload(source, config, gateway.apply), client)
                finally:
                    server.should_exit = True
                    await serving


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))


def tree_of(*sims: Simulator | str, **more: Any) -> dict[str, Any]:
    urls = [sim if isinstance(sim, str) else sim.url for sim in sims]
    engine = {"urls": urls, "probe": {"interval_s": 0.1, "timeout_s": 1}, "routing": {"affinity": "off"}}
    return {"engines": {"e": engine}, "models": {"sim": {"engine": "e", "queue_s": 0.1}}, **more}


async def served(here: Followed) -> list[str]:
    return [model["id"] for model in (await here.client.get("/v1/models")).json()["data"]]


async def test_models_come_and_go_and_an_unchanged_engine_stays_as_it_is(tmp_path: Path) -> None:
    async with simulator() as sim, following(tmp_path, tree_of(sim)) as here:
        assert here.gateway.stack
        pool = here.gateway.stack.pools["e"]
        (replica,) = pool.replicas
        await ask(here.url, ASK)
        tree = tree_of(sim)
        tree["models"] = {"other": {"engine": "e"}, "sim": {"engine": "e"}}
        await here.becomes(tree)
        assert await served(here) == ["other", "sim"]
        assert (await ask(here.url, {**ASK, "model": "other"})).status == 200  # which the engine knows as `sim`
        assert here.gateway.stack.pools["e"] is pool
        assert pool.replicas == [replica]
        del tree["models"]["sim"]
        await here.becomes(tree)
        assert await served(here) == ["other"]
        assert (await ask(here.url, ASK)).status == 404


async def test_keys_change_from_one_request_to_the_next(tmp_path: Path) -> None:
    async with simulator() as sim, following(tmp_path, tree_of(sim)) as here:
        await here.becomes(tree_of(sim, gateway={"keys": [KEY]}))
        assert (await ask(here.url, ASK)).status == 401
        assert (await ask(here.url, ASK, headers={"x-api-key": KEY})).status == 200
        await here.becomes(tree_of(sim, gateway={"keys": [OTHER], "max_body_bytes": 1024}))
        assert (await ask(here.url, ASK, headers={"x-api-key": KEY})).status == 401
        assert (await ask(here.url, {**ASK, "user": "u" * 2000}, headers={"x-api-key": OTHER})).status == 413
        await here.becomes(tree_of(sim))
        assert (await ask(here.url, ASK)).status == 401  # that no key is left opens nothing


async def test_a_replica_that_goes_ends_its_streams_first(tmp_path: Path) -> None:
    async with simulator(itl_s=0.03) as first, simulator(itl_s=0.03) as second:
        async with following(tmp_path, tree_of(first, second)) as here:
            asking = [asyncio.create_task(ask(here.url, about(number, STREAM))) for number in range(6)]
            await until(lambda: first.running + second.running == 6)
            assert first.running
            given = first.started
            await here.becomes(tree_of(second))
            later = await asyncio.gather(*(ask(here.url, about(number, ASK)) for number in range(6, 12)))
            assert all(said.status == 200 for said in later)
            for number, said in enumerate(await asyncio.gather(*asking)):
                assert (said.text, said.done) == (first.expected(about(number, STREAM)).text, True)
            assert (first.started, first.aborted, second.aborted) == (given, 0, 0)
            assert here.gateway.stack
            await until(lambda: not first.connections)
            assert [replica.client.url for replica in here.gateway.stack.pools["e"].replicas] == [second.url]


async def test_a_replica_stays_until_another_is_ready(tmp_path: Path) -> None:
    port = free_port()
    async with simulator() as first, following(tmp_path, tree_of(first)) as here:
        await here.becomes(tree_of(f"http://127.0.0.1:{port}"))
        assert (await ask(here.url, ASK)).status == 200
        assert (await here.client.get("/ready")).status_code == 200
        given = first.started
        async with simulator(port=port) as second:
            assert here.gateway.stack
            pool = here.gateway.stack.pools["e"]
            await until(lambda: [replica.client.url for replica in pool.replicas] == [second.url])
            assert (await ask(here.url, ASK)).status == 200
            assert (first.started, second.started) == (given, 1)


async def test_an_engine_that_is_added_and_not_there_takes_nobody_elses_requests_away(tmp_path: Path) -> None:
    port = free_port()
    async with simulator() as first, following(tmp_path, tree_of(first)) as here:
        tree = tree_of(first)
        tree["engines"]["f"] = {**tree["engines"]["e"], "urls": [f"http://127.0.0.1:{port}"]}
        tree["models"]["new"] = {"engine": "f"}
        await here.becomes(tree)
        said = await here.client.get("/ready")
        assert (said.status_code, said.json()["engines"]) == (200, {"e": True, "f": False})
        async with simulator(port=port):
            await until(lambda: bool(here.gateway.stack and here.gateway.stack.pools["f"].ready))
            assert (await ask(here.url, {**ASK, "model": "new"})).status == 200
            assert (await here.client.get("/ready")).status_code == 200
        await until(lambda: bool(here.gateway.stack and not here.gateway.stack.pools["f"].ready))
        assert (await here.client.get("/ready")).status_code == 503


async def test_an_engine_that_goes_ends_its_streams_first(tmp_path: Path) -> None:
    async with simulator(itl_s=0.03) as first, simulator(model="new") as second:
        async with following(tmp_path, tree_of(first)) as here:
            asking = asyncio.create_task(ask(here.url, STREAM))
            await until(lambda: first.running == 1)
            tree = tree_of(second)
            tree["engines"] = {"f": tree["engines"]["e"]}
            tree["models"] = {"new": {"engine": "f"}}
            await here.becomes(tree)
            assert (await ask(here.url, {**ASK, "model": "new"})).status == 200
            assert (await ask(here.url, ASK)).status == 404
            said = await asking
            assert (said.text, said.done) == (first.expected(STREAM).text, True)
            await until(lambda: not first.connections)
            await here.becomes(tree_of(first))
            assert (await ask(here.url, ASK)).status == 200


async def test_weights_routing_and_the_servers_key_change_in_place(tmp_path: Path) -> None:
    async with simulator() as first, simulator() as second, following(tmp_path, tree_of(first, second)) as here:
        assert here.gateway.stack
        pool = here.gateway.stack.pools["e"]
        before = pool.replicas
        tree = tree_of(first, second)
        tree["engines"]["e"] |= {
            "urls": {first.url: 9, second.url: 1},
            "api_key": "there",
            "routing": {"affinity": "prefix", "breaker_failures": 2},
        }
        await here.becomes(tree)
        assert pool.replicas == before
        assert [replica.weight for replica in before] == [9, 1]
        assert (pool.routing.affinity, before[0].breaker.opens_at) == ("prefix", 2)
        assert (await ask(here.url, ASK)).status == 200
        last = [sim.requests[-1] for sim in (first, second) if sim.started]
        assert last[0].headers["authorization"] == "Bearer there"


async def test_scripted_engines_and_fallbacks_change(tmp_path: Path) -> None:
    async with simulator() as sim, following(tmp_path, tree_of(sim)) as here:
        sim.faults[:] = [Fault("status")]
        tree = tree_of(sim)
        tree["engines"]["s"] = {"kind": "scripted", "options": {"answers": ["instead"]}}
        tree["models"] |= {"sim": {"engine": "e", "fallback": "small"}, "small": {"engine": "s"}}
        await here.becomes(tree)
        said = await ask(here.url, ASK)
        assert said.json["choices"][0]["message"]["content"] == "instead"
        tree["engines"]["s"]["options"]["answers"] = ["again"]
        await here.becomes(tree)
        assert (await ask(here.url, ASK)).json["choices"][0]["message"]["content"] == "again"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("gateway: {}\nengines: [", "penstock.yaml:2 is not YAML"),
        ("gateway: \x00", "is not YAML"),
        ("", "is empty"),
        ("[" * 5000, "cannot be read: RecursionError"),
        ("gateway:\n  prot: 1\n", "penstock.yaml:2: unknown key 'gateway.prot', did you mean 'port'?"),
        ("models:\n  sim:\n    engine: x\n", "penstock.yaml:3: models.sim.engine: unknown engine 'x'"),
        ('engines: {e: {urls: [http://a], api_key: "a\\r\\nb"}}\nmodels: {m: {engine: e}}', "printable ASCII"),
        ("a: 1\na: 2\n", "penstock.yaml:2: the key 'a' stands here a second time"),
    ],
)
async def test_a_bad_file_changes_nothing_and_is_told_by_its_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str, said: str
) -> None:
    async with simulator() as sim, following(tmp_path, tree_of(sim)) as here:
        before = here.gateway.config
        await here.becomes(change)
        assert said in caplog.text
        assert here.gateway.config is before
        assert (await ask(here.url, ASK)).status == 200
        assert (await here.client.get("/ready")).status_code == 200
        figures = (await here.client.get("/metrics")).text
        assert "penstock_config_refused 1.0" in figures
        assert 'penstock_reloads_total{result="refused"}' in figures
        await here.becomes(tree_of(sim))
        assert "penstock_config_refused 0.0" in (await here.client.get("/metrics")).text


async def test_no_secret_of_a_bad_file_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "serving.reload")
    secret = "canary-0123456789abcdef"
    async with simulator() as sim, following(tmp_path, tree_of(sim)) as here:
        for text in (
            f'gateway: {{keys: ["{secret}"',
            f"gateway:\n  keys: {secret}\n",
            f"gateway:\n  keys: [{secret}]\n  kyes: [{secret}]\n",
            f"engines:\n  e: {{urls: [http://a], api_key: [{secret}]}}\nmodels: {{m: {{engine: e}}}}\n",
        ):
            await here.becomes(text)
        await here.becomes(tree_of(sim, f"http://me:{secret}@127.0.0.1:9", gateway={"keys": [secret]}))
        assert len(caplog.get_records("call")) >= 5
        assert secret not in caplog.text


async def test_what_needs_a_restart_is_refused_as_a_whole_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with simulator() as sim, following(tmp_path, tree_of(sim)) as here:
        more = {"gateway": {"port": 9, "keys": [KEY]}, "state": {"database": "sqlite:///x"}, "log": {"level": "debug"}}
        await here.becomes(tree_of(sim, **more))
        assert "only a restart can change gateway.port, state.database, log.level" in caplog.text
        assert KEY not in caplog.text
        assert (await ask(here.url, ASK)).status == 200


async def largest_n(here: Followed) -> int:
    """As the OpenAPI document has it."""
    operation = (await here.client.get("/openapi.json")).json()["paths"]["/v1/chat/completions"]["post"]
    return int(operation["requestBody"]["content"]["application/json"]["schema"]["properties"]["n"]["maximum"])


async def test_limits_and_policy_change(tmp_path: Path) -> None:
    async with simulator(itl_s=0.02) as sim, following(tmp_path, tree_of(sim)) as here:
        tree = tree_of(sim, policy={"max_n": 1})
        tree["models"]["sim"] |= {"concurrent": 1, "queue": 0}
        running = asyncio.create_task(ask(here.url, STREAM))  # which has no ticket, and needs none
        await until(lambda: sim.running == 1)
        await here.becomes(tree)
        limited = asyncio.create_task(ask(here.url, about(1, STREAM)))
        await until(lambda: sim.started == 2)
        assert (await ask(here.url, about(2, ASK))).status == 503
        assert (await ask(here.url, {**ASK, "n": 2})).status == 400
        assert await largest_n(here) == 1
        await here.becomes(tree_of(sim))
        assert (await ask(here.url, {**about(3, ASK), "n": 2})).status == 200
        assert await largest_n(here) == 8
        assert [said.done for said in await asyncio.gather(running, limited)] == [True, True]


async def test_limits_that_several_processes_cannot_hold_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree: dict[str, Any] = {"gateway": {"workers": 2}, "engines": {"e": {"kind": "scripted"}}}
    file = tmp_path / "penstock.yaml"
    write(file, {**tree, "models": {"m": {"engine": "e"}}})
    source = Source(file)
    applied: list[Config] = []
    reload = Reload(source, source.load(), applied.append)
    write(file, {**tree, "models": {"m": {"engine": "e", "rpm": 5}}})
    await reload.again()
    assert "only with Redis" in caplog.text
    assert not applied


async def test_an_address_that_cannot_be_followed_from_here_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    async with simulator() as sim, following(tmp_path, tree_of(sim)) as here:
        await here.becomes(tree_of(sim, "kubernetes://space/service:8000"))
        assert "kubernetes:// is for pods" in caplog.text
        assert (await ask(here.url, ASK)).status == 200


async def test_the_environment_and_the_command_line_stay_above_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_GATEWAY__SHUTDOWN_S", "7")
    file = tmp_path / "penstock.yaml"
    write(file, {"gateway": {"shutdown_s": 1, "port": 1}})
    source = Source(file, {"gateway": {"port": 9000}})
    source.load()
    write(file, {"gateway": {"shutdown_s": 2, "port": 2, "stall_timeout_s": 3}})
    gateway = source.load().gateway
    assert (gateway.port, gateway.shutdown_s, gateway.stall_timeout_s) == (9000, 7, 3)


async def test_a_file_is_read_when_it_has_come_to_rest(tmp_path: Path) -> None:
    async with simulator() as sim, following(tmp_path, tree_of(sim)) as here:
        run = asyncio.create_task(here.reload.run())
        try:
            tree = tree_of(sim)
            tree["models"]["last"] = {"engine": "e"}
            text = yaml.safe_dump(tree, sort_keys=False)
            half = text[: text.index("  last:")]
            assert load_text(tmp_path, half)  # it would do, were it not half of what is meant
            file = here.file
            for end in range(len(half) - 12, len(text), 6):  # slowly written in place, for longer than two looks
                file.write_text(text[:end])
                await asyncio.sleep(0.1)
            assert await served(here) == ["sim"]
            file.write_text(text)
            async with asyncio.timeout(5):
                while await served(here) != ["sim", "last"]:
                    await asyncio.sleep(0.05)
            file.unlink()
            await asyncio.sleep(1.2)
            assert (await here.client.get("/ready")).status_code == 200
            write(file, tree_of(sim))
            async with asyncio.timeout(5):
                while await served(here) != ["sim"]:
                    await asyncio.sleep(0.05)
        finally:
            run.cancel()
            await asyncio.wait([run])


def load_text(folder: Path, text: str) -> Config:
    file = folder / "other.yaml"
    file.write_text(text)
    return load(file)


async def test_what_is_no_file_any_more_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with simulator() as sim, following(tmp_path, tree_of(sim)) as here:
        here.file.unlink()
        os.mkfifo(here.file)
        async with asyncio.timeout(5):
            await here.reload.again()
        assert "no file that can be read again" in caplog.text
        assert (await ask(here.url, ASK)).status == 200


async def test_a_mounted_configmap_is_another_file_when_its_link_is(tmp_path: Path) -> None:
    """Kubernetes swaps a link to a folder; the file's own path stays."""
    for version, shutdown_s in (("one", 1), ("two", 2)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "penstock.yaml").write_text(yaml.safe_dump({"gateway": {"shutdown_s": shutdown_s}}))
    (tmp_path / "data").symlink_to("one")
    source = Source(tmp_path / "data" / "penstock.yaml")
    source.load()
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "data")
    assert source.stamp() != source.read_at
    assert source.load().gateway.shutdown_s == 2


async def test_an_engine_started_here_goes_by_the_names_it_was_given() -> None:
    tree: dict[str, Any] = {"engines": {"e": {"model": "demo"}}, "models": {"a": {"engine": "e"}}}
    replica = Replica.behind("e-0", Path("/nowhere"))
    replica.names = ["a"]
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with composed(Config(**tree), {"e": [replica]}, failed) as stack:
        assert [replica.model] == [None]
        tree["models"]["b"] = {"engine": "e"}
        stack.change(Config(**tree))
        assert (list(stack.models), replica.model) == (["a", "b"], "a")
        del tree["models"]["b"]
        stack.change(Config(**tree))
        assert [replica.model] == [None]
    replica.close()


def config(**engine: Any) -> Config:
    return Config(**{"engines": {"e": engine}, "models": {"m": {"engine": "e"}}})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({"model": "demo"}, {"model": "demo", "options": {"max-model-len": 5}}, ["engines.e.options.max-model-len"]),
        ({"model": "demo"}, {"model": "demo", "replicas": 2}, ["engines.e.replicas"]),
        ({"model": "demo"}, {"model": "demo", "routing": {"affinity": "off"}}, []),
        ({"model": "demo"}, {"model": "demo", "routing": FOLLOWED}, ["engines.e.routing.kv_events"]),
        ({"urls": ["http://a"]}, {"urls": ["http://b"], "api_key": "k", "stop_s": 1}, []),
        ({"urls": ["http://a"]}, {"urls": ["http://a"], "routing": FOLLOWED}, ["engines.e.routing.kv_events"]),
        ({"urls": ["http://a"]}, {"model": "demo"}, ["engines.e.model", "engines.e.urls"]),
        ({"urls": ["http://a"]}, {"kind": "scripted"}, []),
    ],
)
def test_what_of_an_engine_needs_a_restart(before: dict[str, Any], after: dict[str, Any], named: list[str]) -> None:
    one, two = config(**before), config(**after)
    assert needing_a_restart(differences(one.revealed(), two.revealed()), one, two) == named
    back = set(needing_a_restart(differences(two.revealed(), one.revealed()), two, one))
    assert back == set(named)


def test_an_engine_started_here_cannot_come_or_go() -> None:
    one = config(urls=["http://a"])
    tree = one.revealed()
    tree["engines"]["new.one"] = {"model": "demo"}
    two = Config(**tree)
    for before, after in ((one, two), (two, one)):
        changes = differences(before.revealed(), after.revealed())
        assert needing_a_restart(changes, before, after) == ["engines.new.one"]


async def test_a_gateway_without_a_file_says_so(caplog: pytest.LogCaptureFixture) -> None:
    await Reload(Source(), config(kind="scripted"), lambda config: None).again()
    assert "there is no configuration file" in caplog.text
