"""A service's pods come and go, and the API server has its moods."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from engine.endpoint_slices import EndpointSlice, SliceList, Slices
from engine.kubernetes import Cluster, Endpoints
from penstock.addresses import KubernetesService
from penstock.errors import StartError
from tests.conftest import free_port
from tests.engine.api_server import LAST_CHUNK, Slice, api_server, certify, chunk, endpoint, named, piece

pytestmark = pytest.mark.anyio

BY_NUMBER = KubernetesService("serving", "vllm", 8000)
BY_NAME = KubernetesService("serving", "vllm", "http")
PATIENCE_S = 20


class Told:
    """Every set that `apply` was called with, in order."""

    def __init__(self) -> None:
        self.all: list[set[str]] = []
        self._sets: asyncio.Queue[set[str]] = asyncio.Queue()

    def apply(self, urls: frozenset[str]) -> None:
        self.all.append(set(urls))
        self._sets.put_nowait(set(urls))

    async def next(self) -> set[str]:
        return await asyncio.wait_for(self._sets.get(), PATIENCE_S)


@asynccontextmanager
async def following(api: str, folder: Path, service: KubernetesService = BY_NUMBER) -> AsyncIterator[Told]:
    told = Told()
    task = asyncio.create_task(Endpoints(Cluster(api, folder), service, first_wait_s=0.01).watch(told.apply))
    try:
        yield told
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.01)


def urls(*slices: Slice, port: int | str = 8000) -> set[str]:
    """What slices come to, without a server."""
    found = Slices()
    items = [EndpointSlice.model_validate(named(one, str(number), 1)) for number, one in enumerate(slices)]
    found.listed(SliceList(metadata=items[0].metadata, items=items))
    return set(found.urls(port))


def test_only_ready_endpoints_count_and_what_is_not_said_is_ready() -> None:
    ready, unknown = endpoint("10.0.0.1", ready=True), endpoint("10.0.0.2", ready=None)
    starting, silent = endpoint("10.0.0.3", ready=False), endpoint("10.0.0.4")
    assert urls(piece(ready, unknown, starting, silent)) == {
        "http://10.0.0.1:8000",
        "http://10.0.0.2:8000",
        "http://10.0.0.4:8000",
    }


def test_a_pod_that_terminates_is_left_out_even_while_it_serves() -> None:
    draining = endpoint("10.0.0.1", ready=False, serving=True, terminating=True)
    published_anyway = endpoint("10.0.0.2", ready=True, serving=True, terminating=True)
    assert urls(piece(draining, published_anyway)) == set()


def test_slices_are_merged_and_an_address_in_two_of_them_is_one_replica() -> None:
    one, two = endpoint("10.0.0.1", pod="a"), endpoint("10.0.0.2", pod="b")
    moved = endpoint("10.0.0.1", pod="a", ready=False)
    assert urls(piece(one), piece(two, moved), piece(endpoint("10.0.0.2"))) == {
        "http://10.0.0.1:8000",
        "http://10.0.0.2:8000",
    }


def test_a_pod_with_two_families_is_one_replica_and_ipv6_alone_gets_brackets() -> None:
    six = piece(endpoint("fd00::1", pod="a"), endpoint("fd00::2", pod="b"), family="IPv6")
    assert urls(six, piece(endpoint("10.0.0.1", pod="a"))) == {"http://10.0.0.1:8000", "http://[fd00::2]:8000"}


def test_an_endpoints_further_addresses_are_the_same_endpoint() -> None:
    assert urls(piece({"addresses": ["10.0.0.1", "10.0.0.9"], "conditions": {}})) == {"http://10.0.0.1:8000"}


def test_a_named_port_is_looked_up_in_each_slice() -> None:
    old, new = piece(endpoint("10.0.0.1"), http=8000), piece(endpoint("10.0.0.2"), http=8001, metrics=9000)
    other = piece(endpoint("10.0.0.3"), grpc=5000)
    assert urls(old, new, other, piece(endpoint("10.0.0.4")), port="http") == {
        "http://10.0.0.1:8000",
        "http://10.0.0.2:8001",
    }


async def test_pods_that_come_and_go_are_told_as_they_do(tmp_path: Path) -> None:
    async with api_server(tmp_path) as api:
        await api.put("vllm-a", piece(endpoint("10.0.0.1")))
        async with following(api.url, tmp_path) as told:
            assert await told.next() == {"http://10.0.0.1:8000"}
            await api.put("vllm-b", piece(endpoint("10.0.0.2", ready=False)))
            await api.put("vllm-b", piece(endpoint("10.0.0.2", ready=True)))
            assert await told.next() == {"http://10.0.0.1:8000", "http://10.0.0.2:8000"}
            await api.bookmark()
            await api.delete("vllm-a")
            assert await told.next() == {"http://10.0.0.2:8000"}
            await api.delete("vllm-b")
            assert await told.next() == set()
            assert (api.lists, api.watches) == (1, 1)
        assert len(told.all) == 4  # what changes nothing is not told


async def test_a_watch_that_ends_goes_on_where_it_was_with_the_token_of_the_day(tmp_path: Path) -> None:
    async with api_server(tmp_path) as api:
        await api.put("vllm-a", piece(endpoint("10.0.0.1")))
        async with following(api.url, tmp_path) as told:
            await told.next()
            await until(lambda: api.watches == 1)
            api.token = "second"
            (tmp_path / "token").write_text("second\n")
            await api.end_watches()
            await api.put("vllm-a", piece(endpoint("10.0.0.2")))
            assert await told.next() == {"http://10.0.0.2:8000"}
            assert api.lists == 1


@pytest.mark.parametrize("as_status", [False, True])
async def test_a_version_that_the_server_has_forgotten_means_a_new_list(tmp_path: Path, as_status: bool) -> None:
    async with api_server(tmp_path) as api:
        api.gone_is_status = as_status
        async with following(api.url, tmp_path) as told:
            assert await told.next() == set()
            await until(lambda: api.watches == 1)
            api.slices["vllm-a"] = piece(endpoint("10.0.0.1"))  # the event of this is among the forgotten
            await api.forget()
            assert await told.next() == {"http://10.0.0.1:8000"}
            assert api.lists == 2


@pytest.mark.parametrize(
    "ending", [chunk(b'{"type": "ADD'), chunk(b'{"type": "ADD') + LAST_CHUNK, b"", b"1f\r\n{"], ids=repr
)
async def test_a_watch_that_breaks_off_anywhere_is_made_good_by_a_new_list(tmp_path: Path, ending: bytes) -> None:
    async with api_server(tmp_path) as api:
        await api.put("vllm-a", piece(endpoint("10.0.0.1")))
        async with following(api.url, tmp_path) as told:
            await told.next()
            await until(lambda: api.watches == 1)
            api.slices["vllm-a"] = piece(endpoint("10.0.0.2"))
            await api.end_watches(ending)
            assert await told.next() == {"http://10.0.0.2:8000"}


async def test_an_api_server_that_starts_late_and_is_slow_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    certify(tmp_path / "ca.crt", tmp_path / "server.pem")
    (tmp_path / "token").write_text("first")
    async with following(f"https://127.0.0.1:{port}", tmp_path) as told:
        await asyncio.sleep(0.05)
        async with api_server(tmp_path, port=port) as api:
            api.delay_s = 0.2
            await api.put("vllm-a", piece(endpoint("10.0.0.1")))
            assert await told.next() == {"http://10.0.0.1:8000"}


async def test_an_api_server_that_goes_away_takes_no_engine_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    async with following(f"https://127.0.0.1:{port}", tmp_path) as told:
        async with api_server(tmp_path, port=port) as api:
            api.slices["vllm-a"] = piece(endpoint("10.0.0.1"))
            assert await told.next() == {"http://10.0.0.1:8000"}
            caplog.clear()
        await until(lambda: "cannot be asked" in caplog.text)
        async with api_server(tmp_path, port=port) as api:
            api.slices["vllm-a"] = piece(endpoint("10.0.0.2"))
            assert await told.next() == {"http://10.0.0.2:8000"}
    assert len(told.all) == 2


@pytest.mark.parametrize(("status", "remedy"), [(403, "get, list and watch endpointslices"), (401, "token")])
async def test_a_refusal_is_told_once_with_the_remedy_and_overcome(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int, remedy: str
) -> None:
    async with api_server(tmp_path) as api:
        api.refuse = status
        async with following(api.url, tmp_path) as told:
            await until(lambda: api.lists >= 3)
            api.refuse = None
            assert await told.next() == set()
    (warning,) = (record.message for record in caplog.records if str(status) in record.message)
    assert remedy in warning
    assert f"refused with {status}" in warning


async def test_a_server_with_another_authority_is_told_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with api_server(tmp_path) as api:
        other = tmp_path / "other"
        other.mkdir()
        certify(other / "ca.crt", other / "server.pem")
        (other / "token").write_text("first")
        async with following(api.url, other):
            await until(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)
        assert not api.asked


@pytest.mark.parametrize(
    ("service", "slices", "said"),
    [
        (BY_NUMBER, {}, "does the service exist"),
        (BY_NAME, {"a": piece(endpoint("10.0.0.1"), grpc=5000)}, "no port is named http: there are grpc"),
    ],
)
async def test_a_service_that_can_have_no_replica_is_told_as_such(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, service: KubernetesService, slices: dict[str, Slice], said: str
) -> None:
    async with api_server(tmp_path) as api:
        api.slices |= slices
        async with following(api.url, tmp_path, service) as told:
            assert await told.next() == set()
            await until(lambda: api.watches == 1)
            await api.bookmark()
            await api.end_watches()
            await until(lambda: api.watches == 2)
    assert caplog.text.count(said) == 1


async def test_an_answer_of_another_shape_is_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with api_server(tmp_path) as api:
        api.slices["vllm-a"] = {"endpoints": [{"addresses": []}]}
        async with following(api.url, tmp_path) as told:
            await until(lambda: "not about EndpointSlices" in caplog.text)
            await api.put("vllm-a", piece(endpoint("10.0.0.1")))
            assert await told.next() == {"http://10.0.0.1:8000"}


def test_outside_a_cluster_the_error_says_what_to_write_instead(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="dns://"):
        Cluster.of_pod({}, tmp_path)
    with pytest.raises(StartError, match="automountServiceAccountToken"):
        Cluster.of_pod({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)


def test_a_pod_finds_its_cluster_in_the_environment(tmp_path: Path) -> None:
    for name in ("token", "ca.crt"):
        (tmp_path / name).touch()
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    assert Cluster.of_pod(environ, tmp_path).url == "https://[fd00::1]:6443"
