"""Names with several addresses, resolved again and again."""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress

import pytest

from engine.discovery import Dns, resolve, watch
from penstock.errors import StartError

pytestmark = pytest.mark.anyio

FAILS = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
Answer = Sequence[str] | Exception


class Names:
    """A name server that gives one answer after the other, then the last for ever."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []
        self.exhausted = asyncio.Event()

    async def look_up(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if len(self.asked) > len(self.answers):
            self.exhausted.set()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def told(*answers: Answer) -> list[set[str]]:
    """What is told while the name resolves to one answer after the other."""
    names = Names(*answers)
    sets: list[set[str]] = []
    task = asyncio.create_task(Dns("vllm.serving.svc", 8000, 0.001, names.look_up).watch(lambda s: sets.append(set(s))))
    await asyncio.wait_for(names.exhausted.wait(), 20)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert set(names.asked) == {("vllm.serving.svc", 8000)}
    return sets


async def test_every_address_is_a_replica_and_changes_are_told() -> None:
    assert await told(["10.0.0.1"], ["10.0.0.1", "10.0.0.2"], ["10.0.0.2"]) == [
        {"http://10.0.0.1:8000"},
        {"http://10.0.0.1:8000", "http://10.0.0.2:8000"},
        {"http://10.0.0.2:8000"},
    ]


async def test_order_and_repetition_are_no_change() -> None:
    assert len(await told(["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.1", "10.0.0.1"])) == 1


async def test_an_ipv6_address_gets_brackets() -> None:
    assert await told(["fd00::1", "10.0.0.1"]) == [{"http://[fd00::1]:8000", "http://10.0.0.1:8000"}]


async def test_a_name_server_that_is_down_takes_no_engine_away(caplog: pytest.LogCaptureFixture) -> None:
    sets = await told(["10.0.0.1"], FAILS, FAILS, [], FAILS, ["10.0.0.1"], ["10.0.0.2"])
    assert sets == [{"http://10.0.0.1:8000"}, {"http://10.0.0.2:8000"}]
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert "the last addresses stay" in warning


async def test_a_name_that_never_resolves_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    assert await told(FAILS, FAILS, FAILS) == []
    assert caplog.text.count("is the name right") == 1


async def test_the_systems_resolver_knows_localhost() -> None:
    assert set(await resolve("localhost", 80)) & {"127.0.0.1", "::1"}


async def test_an_address_of_the_configuration_is_watched_until_cancelled() -> None:
    first: asyncio.Future[frozenset[str]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(watch("dns://localhost:8000", first.set_result))
    assert await asyncio.wait_for(first, 20) & {"http://127.0.0.1:8000", "http://[::1]:8000"}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_kubernetes_outside_a_cluster_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(StartError, match="KUBERNETES_SERVICE_HOST"):
        await watch("kubernetes://serving/vllm:8000", print)
