"""The mock engine and the load generator, as processes of their own, over real sockets."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import orjson
import pytest

from benchmarks.gateway import Mock, mock_engine
from benchmarks.load import Load
from benchmarks.mock_engine import events
from benchmarks.prompts import bodies
from benchmarks.rounds import Range, Work
from engine.sse import EventSplitter


@pytest.fixture(scope="module")
def mock() -> Iterator[Mock]:
    with mock_engine(2) as engine:
        yield engine


def load(mock: Mock, folder: Path, body: bytes, *words: str) -> Load:
    file = folder / "bodies.jsonl"
    file.write_bytes(body)
    command = [sys.executable, "-m", "benchmarks.load", mock.urls[0], "--bodies", str(file), *words]
    return Load(**json.loads(subprocess.check_output(command)))


def test_a_mock_stream_is_the_role_the_tokens_and_the_end() -> None:
    said = EventSplitter().feed(b"".join(events(1, tokens=5)))
    chunks = [orjson.loads(event.removeprefix(b"data: ")) for event in said[:-1]]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all(choice["delta"]["content"] for choice in choices[1:])
    assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["length"]
    assert said[-1] == b"data: [DONE]\n\n"


def test_the_mock_answers_what_gateways_ask_of_an_engine_and_404_elsewhere(mock: Mock) -> None:
    with httpx2.Client(base_url=mock.urls[1], trust_env=False) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models").json()["data"][0]["id"] == "m"
        assert "vllm:num_requests_running" in client.get("/metrics").text
        assert client.post("/tokenize", json={}).status_code == 404
        answer = client.post("/v1/chat/completions", json={"model": "m", "messages": [], "max_tokens": 3}).json()
        assert answer["usage"]["completion_tokens"] == 3


def test_requests_are_of_the_size_that_was_asked_for_and_each_is_another() -> None:
    made = list(bodies(2000, max_tokens=7))
    assert len(set(made)) == len(made) == 16
    assert {len(body) for body in made} == {2000}
    assert all(orjson.loads(body)["max_tokens"] == 7 for body in made)


def test_so_many_requests_are_asked_and_no_more(mock: Mock, tmp_path: Path) -> None:
    found = load(mock, tmp_path, b'{"max_tokens": 3}', "--requests", "200", "--clients", "4", "--times")
    assert (found.completed, found.errors, len(found.latency_s)) == (200, {}, 200)


def test_streams_are_counted_by_their_events(mock: Mock, tmp_path: Path) -> None:
    body = b'{"max_tokens": 3, "stream": true, "seed": 1}'
    words = ("--requests", "20", "--clients", "4", "--stream", "--times")
    found = load(mock, tmp_path, body, *words, "--events", "5")
    assert (found.completed, found.events, found.errors) == (20, 100, {})
    assert all(0 < first < last for first, last in zip(found.first_token_s, found.latency_s, strict=True))
    assert load(mock, tmp_path, body, *words, "--events", "6").errors == {"an answer that is not whole": 20}


def test_answers_that_are_no_success_are_errors(mock: Mock, tmp_path: Path) -> None:
    nowhere = Mock(mock.pid, ["http://127.0.0.1:9"], mock.socket)
    found = load(nowhere, tmp_path, b"{}", "--requests", "3", "--clients", "3")
    assert found.completed == 0
    assert sum(found.errors.values()) == 3


def test_an_open_loop_asks_as_often_as_it_should(mock: Mock, tmp_path: Path) -> None:
    found = load(mock, tmp_path, b"{}", "--rate", "100", "--seconds", "3", "--warm-s", "0.2", "--times")
    assert 0 < found.completed <= 450  # on a machine that is busy some come late, and those before the start count too
    assert len(found.latency_s) == found.completed


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the gateway and its clients have a core each")
def test_a_measurement_tells_the_gateways_cost_from_the_harness(mock: Mock, tmp_path: Path) -> None:
    """The mock engine stands for the gateway: its own time is what is found."""
    place = Range(mock.pid, os.getpid(), tmp_path, size_bytes=600, clients=4, seconds=0.5, warm_s=0.2)
    sample = place.measure(mock.urls[0], mock.pid, Work("request"))
    assert not sample.errors
    assert sample.cpu_us * sample.per_s / 1e6 == pytest.approx(sample.gateway_share)
    assert 0 < sample.gateway_share < 1.1
    assert all(0 < taken < 1 for taken in sample.reference_s)
