"""The real vLLM behind the gateway: sensible, and mended when it is killed or stopped."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import orjson

from tests.conftest import Served, arguments, free_port, running
from tests.serving.conftest import run_gateway

CHAT = "/v1/chat/completions"
BACK_S = 180


def ask(text: str, **more: object) -> dict[str, object]:
    return {"model": "demo", "messages": [{"role": "user", "content": text}], **more}


LONG = ask("Tell me a story.", stream=True, max_tokens=1500, ignore_eos=True)


def broken_stream(served: Served, break_it: signal.Signals, *victims: int) -> list[str]:
    """A stream's lines, with a signal to some of the engine's processes after the first."""
    with served.client.stream("POST", CHAT, json=LONG) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        first = next(lines)
        for pid in victims:
            os.kill(pid, break_it)
        return [first, *(line for line in lines if line)]


def assert_ends_in_an_error_event(lines: list[str]) -> None:
    last = orjson.loads(lines[-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error"
    assert "data: [DONE]" not in lines


def assert_answers_again(served: Served, restarts: float) -> None:
    """The next request, however early it comes, is answered by a new engine."""
    answer = served.client.post(CHAT, json=ask("What can you do?", max_tokens=5))
    assert answer.status_code == 200, answer.text
    assert served.figure('penstock_engine_restarts_total{engine="base",replica="0"}') > restarts
    until_ready(served)


def until_ready(served: Served) -> None:
    deadline = time.monotonic() + BACK_S
    while served.client.get("/ready").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def restarts(served: Served) -> float:
    return served.figure('penstock_engine_restarts_total{engine="base",replica="0"}')


def test_make_serve_prints_what_a_newcomer_needs(demo: Served) -> None:
    assert f"Penstock serves demo on {demo.url}" in demo.text
    assert f"curl {demo.url}/v1/chat/completions" in demo.text


def test_the_engines_figures_are_published_under_our_names(demo: Served) -> None:
    demo.client.post(CHAT, json=ask("Hello", max_tokens=5))
    deadline = time.monotonic() + 30
    while demo.figure('penstock_engine{engine="base",figure="generation_tokens",replica="0"}') < 5:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_client_that_leaves_frees_the_engines_slot_within_a_second(demo: Served) -> None:
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=demo.engine_socket), base_url="http://engine") as engine:

        def running() -> float:
            lines = engine.get("/metrics").text.splitlines()
            return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running{"))

        for stream in (True, False):
            with httpx2.Client(base_url=demo.url, trust_env=False) as client:
                try:
                    with client.stream("POST", CHAT, json=LONG | {"stream": stream}, timeout=1) as answer:
                        next(answer.iter_lines())
                except httpx2.ReadTimeout:
                    assert not stream
            left = time.monotonic()
            while running() and time.monotonic() - left < 1:
                time.sleep(0.05)
            assert running() == 0


def test_killing_every_process_of_the_engine_is_an_error_event_and_the_next_request_is_answered(demo: Served) -> None:
    before = restarts(demo)
    lines = broken_stream(demo, signal.SIGKILL, *demo.engine_processes())
    assert_ends_in_an_error_event(lines)
    assert_answers_again(demo, before)


def test_killing_the_engine_core_alone_is_mended_too(demo: Served) -> None:
    before = restarts(demo)
    core = next(pid for pid in demo.engine_processes() if any("EngineCore" in word for word in arguments(pid)))
    assert_ends_in_an_error_event(broken_stream(demo, signal.SIGKILL, core))
    assert_answers_again(demo, before)


def test_a_stopped_engine_is_noticed_and_mended(demo: Served) -> None:
    before = restarts(demo)
    assert_ends_in_an_error_event(broken_stream(demo, signal.SIGSTOP, *demo.engine_processes()))
    assert_answers_again(demo, before)


def test_tokens_are_counted_and_put_back_together(demo: Served) -> None:
    tokens = demo.client.post("/tokenize", json={"model": "demo", "prompt": "Grüße 🌊"}).json()["tokens"]
    text = demo.client.post("/detokenize", json={"model": "demo", "tokens": tokens}).json()["prompt"]
    assert text == "Grüße 🌊"


def test_a_judge_asks_the_engine_and_what_it_has_cost_is_told(demo: Served) -> None:
    """Whatever the model thinks, the judge that blocks and the one that only flags have the same opinion."""
    judge = {"model": "demo", "rubric": "It must not greet anybody.", "on": "input"}
    tree: dict[str, Any] = {
        "engines": {"real": {"urls": [demo.url], "model": "demo"}},
        "guards": {"flagging": [{"judge": judge | {"action": "flag"}}], "blocking": [{"judge": judge}]},
        "models": {
            "demo": {"engine": "real"},
            "flagged": {"engine": "real", "guards": "flagging"},
            "blocked": {"engine": "real", "guards": "blocking"},
        },
    }

    async def asked() -> list[httpx2.Response]:
        async with run_gateway(hot=True, **tree) as client:
            hello = [ask("Hello", max_tokens=5) | {"model": model} for model in ("flagged", "blocked")]
            moderated = await client.post("/v1/moderations", json={"model": "blocking", "input": "Hello"}, timeout=120)
            return [moderated, *[await client.post(CHAT, json=body, timeout=120) for body in hello]]

    moderated, flagged, blocked = asyncio.run(asked())
    steps = flagged.json()["usage"]["penstock"]["steps"]
    assert 0 < steps["flagging.judge"]["completion_tokens"] <= 4
    assert steps["flagging.judge"]["prompt_tokens"] > steps["answer"]["prompt_tokens"] > 0
    assert blocked.status_code == (400 if moderated.json()["results"][0]["flagged"] else 200)


def test_a_pooling_engine_embeds_scores_and_ranks_and_dies_with_its_gateway(tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text("engines: {e: {model: demo, options: {runner: pooling}}}\nmodels: {m: {engine: e}}")
    port = free_port()
    command = [str(Path(sys.executable).parent / "penstock"), "serve", "--config", str(file), "--port", str(port)]
    texts = ["hello", "world"]
    with running(command, port, tmp_path) as served:
        embedded = served.client.post("/v1/embeddings", json={"model": "m", "input": texts}).json()
        scored = served.client.post("/v1/score", json={"model": "m", "text_1": "hello", "text_2": texts}).json()
        ranked = served.client.post("/v1/rerank", json={"model": "m", "query": "hello", "documents": texts}).json()
        refused = served.client.post(CHAT, json=ask("hi") | {"model": "m"})
        engine = served.engine_processes()
        served.process.kill()
        deadline = time.monotonic() + 30
        while any(any(arguments(pid)) for pid in engine):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert [len(item["embedding"]) for item in embedded["data"]] == [192, 192]
    assert scored["data"][0]["score"] > scored["data"][1]["score"]
    assert ranked["results"][0]["index"] == 0
    assert "does not serve /v1/chat/completions" in refused.json()["error"]["message"]
