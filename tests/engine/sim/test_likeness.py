"""The simulator held against the real vLLM: the same events in the same order, no field that vLLM does not send."""

import itertools
from collections.abc import Iterator
from typing import Any

import httpx2
import orjson
import pytest

from engine import gauges, sse
from engine.sim import simulator
from tests.conftest import Served

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello!"}]
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 5}),
    ("/v1/completions", {"prompt": "Hello", "max_tokens": 5}),
    ("/v1/responses", {"input": "Hello!", "max_output_tokens": 5}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 5}),
]
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("/tokenize", {"prompt": "Hello", "return_token_strs": True}),
    ("/tokenize", {"messages": HELLO}),
    ("/detokenize", {"tokens": [70, 71]}),
    ("/v1/messages/count_tokens", {"messages": HELLO}),
    ("/v1/chat/completions", {}),
    ("/v1/chat/completions", {"messages": HELLO, "max_tokens": -5}),
    ("/v1/chat/completions", {"messages": HELLO, "model": "other"}),
    ("/v1/chat/completions", {"messages": HELLO, "continue_final_message": True}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a " * 40_000}]}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 5, "model": "other"}),
    ("/nope", {}),
    ("/health", {}),
]


def fields(document: Any, path: str = "") -> Iterator[str]:
    """{"a": [{"b": 1}]} -> "a", "a[]", "a[].b"."""
    children: list[tuple[str, Any]] = []
    if isinstance(document, dict):
        children = [(f"{path}.{name}", child) for name, child in document.items()]
    elif isinstance(document, list):
        children = [(f"{path}[]", child) for child in document]
    for name, child in children:
        yield name
        yield from fields(child, name)


def kinds(body: bytes) -> list[tuple[str, frozenset[str]]]:
    """Each event's name with what it has; of several alike in a row one."""
    events = [sse.parse(event) for event in sse.EventSplitter().feed(body)]
    documents = [(event.name, orjson.loads(event.data) if event.data != sse.DONE else "[DONE]") for event in events]
    named = [(name, frozenset(fields(document))) for name, document in documents]
    return [kind for kind, _ in itertools.groupby(named)]


@pytest.fixture
async def real(demo: Served) -> Any:
    transport = httpx2.AsyncHTTPTransport(uds=demo.engine_socket)
    async with httpx2.AsyncClient(transport=transport, base_url="http://engine", timeout=60) as client:
        yield client


@pytest.fixture
async def simulated() -> Any:
    async with simulator(model="demo", max_model_len=2048) as sim:
        async with httpx2.AsyncClient(base_url=sim.url, timeout=20, trust_env=False) as client:
            yield client


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_streams_are_alike(
    real: httpx2.AsyncClient, simulated: httpx2.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    usage = {"stream_options": {"include_usage": True}} if "completions" in path else {}
    asked = {"model": "demo", "stream": True, **body, **usage}
    theirs, ours = [await client.post(path, json=asked) for client in (real, simulated)]
    assert ours.headers["content-type"] == theirs.headers["content-type"]
    there, here = kinds(theirs.content), kinds(ours.content)
    assert [name for name, _ in here] == [name for name, _ in there]
    for (_, our_fields), (_, their_fields) in zip(here, there, strict=True):
        assert our_fields <= their_fields


@pytest.mark.parametrize(("path", "body"), BODIES + OTHERS)
async def test_whole_answers_are_alike(
    real: httpx2.AsyncClient, simulated: httpx2.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    theirs, ours = [await client.post(path, json={"model": "demo", **body}) for client in (real, simulated)]
    assert ours.status_code == theirs.status_code
    assert ours.headers["content-type"] == theirs.headers["content-type"]
    assert set(fields(ours.json())) <= set(fields(theirs.json()))
    if "error" in ours.json():
        assert ours.json()["error"]["type"] == theirs.json()["error"]["type"]


async def test_every_figure_is_one_of_vllms(real: httpx2.AsyncClient, simulated: httpx2.AsyncClient) -> None:
    theirs, ours = [
        {name for name, _ in gauges.samples((await client.get("/metrics")).text)} for client in (real, simulated)
    ]
    assert ours <= theirs


async def test_what_asks_for_less_is_alike(real: httpx2.AsyncClient, simulated: httpx2.AsyncClient) -> None:
    for path in ("/health", "/v1/models", "/version", "/nope"):
        theirs, ours = [await client.get(path) for client in (real, simulated)]
        assert ours.status_code == theirs.status_code
        assert ours.headers.get("content-type") == theirs.headers.get("content-type")
        if ours.content:
            assert set(fields(ours.json())) <= set(fields(theirs.json()))
