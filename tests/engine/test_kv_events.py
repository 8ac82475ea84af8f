"""KV events over real ZeroMQ sockets: what is followed, what is missed, who publishes."""

import asyncio
import importlib.util
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from engine.cached import Cached
from engine.kv_events import Source, follow, sources
from penstock.errors import EngineError, StartError
from tests.conftest import free_port
from tests.engine.kv_publisher import PATIENCE_S, publishing, removed, stored

msgspec = pytest.importorskip("msgspec", reason="msgspec is not installed")
zmq = pytest.importorskip("zmq", reason="pyzmq is not installed")
asyncio_zmq = pytest.importorskip("zmq.asyncio", reason="pyzmq is not installed")

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]
ALL = ONE + TWO + THREE


@asynccontextmanager
async def following(
    endpoint: str, replay: str | None = None, topic: str = "", replay_timeout_s: float = PATIENCE_S
) -> AsyncIterator[Cached]:
    cached = Cached()
    task = asyncio.create_task(follow(endpoint, cached, replay=replay, topic=topic, replay_timeout_s=replay_timeout_s))
    try:
        yield cached
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.01)


async def becomes(cached: Cached, matched: int) -> None:
    await until(lambda: cached.matched(ALL) == matched)


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/events"


@pytest.fixture
def replay(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/replay"


@pytest.fixture(params=["ipc", "tcp"])
def anywhere(request: pytest.FixtureRequest, endpoint: str) -> str:
    return endpoint if request.param == "ipc" else f"tcp://127.0.0.1:{free_port()}"


async def test_what_is_stored_removed_and_cleared_is_followed(anywhere: str) -> None:
    async with publishing(anywhere) as publisher, following(anywhere) as cached:
        await publisher.subscribed()
        await publisher.publish(stored(1, 2, tokens=ONE + TWO))
        await becomes(cached, 8)
        await publisher.publish(stored(3, after=2, tokens=THREE))
        await becomes(cached, 12)
        await publisher.publish(removed(3), removed(2))
        await becomes(cached, 4)
        await publisher.publish({"type": "AllBlocksCleared"})
        await becomes(cached, 0)


async def test_a_batch_that_was_missed_makes_all_that_was_known_doubtful(endpoint: str) -> None:
    async with publishing(endpoint) as publisher, following(endpoint) as cached:
        await publisher.subscribed()
        await publisher.publish(stored(1, tokens=ONE))
        await becomes(cached, 4)
        await publisher.publish(removed(1), lost=True)
        await publisher.publish(stored(9, tokens=TWO))
        await until(lambda: cached.matched(TWO) == 4)
        assert cached.matched(ONE) == 0


async def test_a_batch_that_was_missed_is_asked_for_where_it_is_repeated(endpoint: str, replay: str) -> None:
    async with publishing(endpoint, replay) as publisher, following(endpoint, replay) as cached:
        await publisher.subscribed()
        await publisher.publish(stored(1, tokens=ONE))
        await publisher.publish(stored(2, after=1, tokens=TWO), lost=True)
        await publisher.publish(stored(3, after=2, tokens=THREE))
        await becomes(cached, 12)
        assert len(cached) == 3


async def test_what_is_no_longer_repeated_makes_the_rest_doubtful(endpoint: str, replay: str) -> None:
    async with publishing(endpoint, replay) as publisher, following(endpoint, replay) as cached:
        await publisher.subscribed()
        await publisher.publish(stored(1, tokens=ONE))
        await becomes(cached, 4)
        await publisher.publish(removed(1), lost=True)
        publisher.kept.clear()
        await publisher.publish(stored(9, tokens=TWO))
        await until(lambda: cached.matched(TWO) == 4)
        assert cached.matched(ONE) == 0


async def test_who_comes_late_is_told_what_went_before(endpoint: str, replay: str) -> None:
    async with publishing(endpoint, replay) as publisher:
        await publisher.publish(stored(1, tokens=ONE))
        await publisher.publish(stored(2, after=1, tokens=TWO))
        async with following(endpoint, replay) as cached:
            await becomes(cached, 8)


async def test_a_place_that_does_not_repeat_is_told_and_done_without(
    endpoint: str, replay: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with publishing(endpoint) as publisher, following(endpoint, replay, replay_timeout_s=0.05) as cached:
        await publisher.subscribed()
        await publisher.publish(stored(1, tokens=ONE), lost=True)
        await publisher.publish(stored(2, tokens=ONE))
        await becomes(cached, 4)
    assert "what was missed is not repeated" in caplog.text


async def test_a_publisher_that_is_replaced_begins_with_an_empty_cache(anywhere: str) -> None:
    async with following(anywhere) as cached:
        for tokens in (ONE, TWO):
            async with publishing(anywhere) as publisher:
                await publisher.subscribed()
                assert cached.matched(ONE) == 0
                await publisher.publish(stored(1, tokens=tokens))
                await until(lambda: len(cached) == 1)
                assert cached.matched(tokens) == 4
            await until(lambda: len(cached) == 0)


async def test_numbers_that_happen_to_go_on_after_a_replacement_deceive_nobody(endpoint: str) -> None:
    async with following(endpoint) as cached:
        async with publishing(endpoint) as publisher:
            await publisher.subscribed()
            await publisher.publish(stored(1, tokens=ONE))
            await becomes(cached, 4)
        async with publishing(endpoint) as publisher:
            publisher.number = 1
            await publisher.subscribed()
            await publisher.publish(stored(2, tokens=TWO))
            await until(lambda: cached.matched(TWO) == 4)
            assert cached.matched(ONE) == 0


@pytest.mark.parametrize(
    "event",
    [
        stored(1, tokens=ONE, lora_id=1),
        stored(1, tokens=ONE, lora_name="adapter"),
        stored(1, tokens=ONE, extra_keys=[("salt",)]),
        stored(1, tokens=ONE, medium="CPU"),
        stored(1, tokens=ONE, locality="REMOTE"),
        stored(1, tokens=ONE, kv_cache_spec_kind="sliding_window"),
        stored(1, tokens=[]),
        stored(1, tokens=[], block_size=0),
        {"type": "BlockForgotten", "block_hashes": [1]},
    ],
    ids=str,
)
async def test_what_a_plain_prompt_would_not_find_is_left_out(endpoint: str, event: dict[str, Any]) -> None:
    async with publishing(endpoint) as publisher, following(endpoint) as cached:
        await publisher.subscribed()
        await publisher.publish(event, stored(2, after=1, tokens=TWO), stored(3, tokens=THREE))
        await until(lambda: cached.matched(THREE) == 4)
        assert len(cached) == 1


async def test_blocks_before_an_image_count_and_those_after_do_not(endpoint: str) -> None:
    async with publishing(endpoint) as publisher, following(endpoint) as cached:
        await publisher.subscribed()
        await publisher.publish(stored(1, 2, 3, tokens=ALL, extra_keys=[None, [["image", 4]], None]))
        await becomes(cached, 4)
        assert len(cached) == 1


async def test_salted_prompts_are_followed_each_by_its_salt(endpoint: str) -> None:
    salted = [[["cache_salt", "ours"]], None]
    with_image = [[["cache_salt", "ours"], ["image", 4]], None]
    async with publishing(endpoint) as publisher, following(endpoint) as cached:
        await publisher.subscribed()
        await publisher.publish(
            stored(1, 2, tokens=ONE + TWO, extra_keys=salted), stored(4, 5, tokens=TWO + ONE, extra_keys=with_image)
        )
        await publisher.publish(stored(3, after=2, tokens=THREE))
        await until(lambda: cached.matched(ALL, "ours") == 12)
        assert cached.matched(ALL) == cached.matched(ALL, "theirs") == 0
        assert cached.matched(TWO + ONE, "ours") == 0


async def test_one_group_of_layers_is_followed_and_the_others_removals_are_not_its(endpoint: str) -> None:
    async with publishing(endpoint) as publisher, following(endpoint) as cached:
        await publisher.subscribed()
        window = stored(1, tokens=ONE, group_idx=0, kv_cache_spec_kind="sliding_window")
        full = stored(1, 2, tokens=ONE + TWO, group_idx=1, kv_cache_spec_kind="full_attention")
        also_full = stored(1, 2, tokens=ONE + TWO, group_idx=2, kv_cache_spec_kind="full_attention")
        await publisher.publish(window, full, also_full, removed(1, group_idx=0), removed(1, medium="CPU", group_idx=1))
        await becomes(cached, 8)
        await publisher.publish(removed(2, group_idx=2), removed(2, group_idx=1))
        await becomes(cached, 4)


async def test_events_with_fields_in_order_are_understood(endpoint: str) -> None:
    async with publishing(endpoint) as publisher, following(endpoint) as cached:
        await publisher.subscribed()
        await publisher.publish(["BlockStored", [b"a", b"b"], None, ONE + TWO, 4, None], ["BlockRemoved", [b"b"]])
        await becomes(cached, 4)
        await publisher.publish(["AllBlocksCleared"])
        await becomes(cached, 0)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({}),
        msgspec.msgpack.encode([0.5]),
        msgspec.msgpack.encode([0.5, [7], 0]),
        msgspec.msgpack.encode([0.5, [{"type": "BlockRemoved"}], 0]),
        msgspec.msgpack.encode([0.5, [stored(1, tokens=[2**40] * 4)], 0]),
    ],
)
async def test_a_batch_that_cannot_be_read_is_survived(
    endpoint: str, caplog: pytest.LogCaptureFixture, payload: bytes
) -> None:
    async with publishing(endpoint) as publisher, following(endpoint) as cached:
        await publisher.subscribed()
        await publisher.publish(stored(1, tokens=ONE))
        await publisher.send(payload)
        await publisher.send(payload)
        await publisher.publish(stored(3, tokens=THREE))
        await until(lambda: cached.matched(THREE) == 4)
        assert cached.matched(ONE) == 0
    assert caplog.text.count("cannot be read") == 1


async def test_only_the_topic_that_was_asked_for_is_heard(endpoint: str) -> None:
    async with publishing(endpoint, topic="kv@a") as publisher, following(endpoint, topic="kv@a") as cached:
        await publisher.subscribed()
        publisher.topic = b"other"
        await publisher.publish(stored(1, tokens=TWO))
        publisher.topic, publisher.number = b"kv@a", 0
        await publisher.publish(stored(1, tokens=ONE))
        await becomes(cached, 4)
        assert len(cached) == 1


async def test_a_place_where_nothing_listens_is_told_once_and_waited_for(
    anywhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(anywhere) as cached:
        await until(lambda: "nothing listens there" in caplog.text)
        await asyncio.sleep(0.5)
        assert caplog.text.count("nothing listens there") == 1
        async with publishing(anywhere) as publisher:
            await publisher.subscribed()
            await publisher.publish(stored(1, tokens=ONE))
            await becomes(cached, 4)


@pytest.mark.parametrize("endpoint", ["tcp://*:5557", "tcp://127.0.0.1", "http://127.0.0.1:5557", ""])
async def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(StartError, match="tcp://HOST:PORT or ipc:///PATH"):
        await follow(endpoint, Cached())


@pytest.mark.parametrize("module", ["zmq", "msgspec"])
def test_without_the_packages_the_error_says_what_to_install(module: str) -> None:
    code = f"""
import asyncio, sys
sys.modules[{module!r}] = None
from engine.cached import Cached
from engine.kv_events import follow
asyncio.run(follow("ipc:///nowhere", Cached()))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "StartError: following KV events needs the packages pyzmq and msgspec" in shown.stderr


SOURCES = {
    "1": {"endpoint": "tcp://*:5558", "replay_endpoint": "tcp://*:6558", "topic": "kv", "hwm": 100000},
    "0": {"endpoint": "tcp://10.0.0.3:5557", "replay_endpoint": None},
    "10": {"endpoint": "inproc://cache_dp10"},
    "2": {"endpoint": "ipc:///run/kv"},
    "3": {"endpoint": "tcp://:::5560"},
}


@pytest.mark.parametrize(
    ("host", "written"), [("10.0.0.7", "10.0.0.7"), ("vllm-0.serving", "vllm-0.serving"), ("fd00::7", "[fd00::7]")]
)
async def test_a_replicas_publishers_are_found_by_rank_at_its_own_address(host: str, written: str) -> None:
    async def get(path: str) -> bytes:
        assert path == "/kv_event_sources"
        return json.dumps(SOURCES).encode()

    assert await sources(get, host) == [
        Source("tcp://10.0.0.3:5557"),
        Source(f"tcp://{written}:5558", f"tcp://{written}:6558", "kv"),
        Source("ipc:///run/kv"),
        Source(f"tcp://{written}:5560"),
    ]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"a": {}}', b'{"0": {"endpoint": 1}}'])
async def test_an_answer_that_lists_no_publishers_is_refused(body: bytes) -> None:
    async def get(path: str) -> bytes:
        return body

    with pytest.raises(EngineError, match="kv_event_sources"):
        await sources(get, "10.0.0.7")


VLLM_PUBLISHES = """
import json, sys
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch, ZmqEventPublisher
publisher = ZmqEventPublisher(0, sys.argv[1], sys.argv[2], topic="kv")
print("ready", flush=True)
for line in sys.stdin:
    kinds = {kind.__name__: kind for kind in (AllBlocksCleared, BlockRemoved, BlockStored)}
    publisher.publish(KVEventBatch(ts=1.0, events=[kinds[event.pop("type")](**event) for event in json.loads(line)]))
"""


class Vllms:
    """A process with vLLM's own publisher; a call publishes a batch."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.kill = process.kill
        self.stdin = process.stdin

    def __call__(self, *events: dict[str, Any]) -> None:
        print(json.dumps(events), file=self.stdin, flush=True)


@contextmanager
def vllms_publisher(endpoint: str, replay: str) -> Iterator[Vllms]:
    command = [sys.executable, "-c", VLLM_PUBLISHES, endpoint, replay]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert "ready\n" in process.stdout
            yield Vllms(process)
        finally:
            process.kill()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
async def test_vllms_own_publisher_is_understood_from_its_first_batch_to_its_end(endpoint: str, replay: str) -> None:
    with vllms_publisher(endpoint, replay) as publish:
        publish(stored(2**64 - 1, 2, tokens=ONE + TWO, extra_keys=None, kv_cache_spec_kind="full_attention"))
        async with following(endpoint, replay, "kv") as cached:
            await becomes(cached, 8)  # repeated: it was published before anybody followed
            publish(stored(3, after=2, tokens=THREE, session_id="s"))
            await becomes(cached, 12)
            publish(removed(3), removed(2))
            await becomes(cached, 4)
            publish({"type": "AllBlocksCleared"})
            publish(stored(4, tokens=TWO))
            await until(lambda: cached.matched(TWO) == 4)
            assert cached.matched(ONE) == 0
            publish.kill()
            await until(lambda: len(cached) == 0)
