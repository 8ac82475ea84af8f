"""What an engine generated that is no text of the answer costs as much, also for who leaves in the midst of it."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.reading import CHAT, MESSAGES, RESPONSES
from engine.sim import Fault, simulator
from penstock.store import opened
from serving.ledger import Ledger
from tests.reliability.client import ask
from tests.serving.conftest import run_gateway
from tests.serving.test_ledger import STREAM, gateway_with, sums
from tests.upstream import streams, upstream

pytestmark = pytest.mark.anyio

THINKING = STREAM | {"chat_template_kwargs": {"enable_thinking": True}}
PIECES = 12
ASKS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Count me."}]},
    MESSAGES: {"messages": [{"role": "user", "content": "Count me."}], "max_tokens": 100},
    RESPONSES: {"input": "Count me."},
}
DELTA: dict[str, Any] = {"type": "content_block_delta", "index": 0}
STARTED = {
    "type": "message_start",
    "message": {"role": "assistant", "content": [], "usage": {"input_tokens": 9, "output_tokens": 0}},
}


def event(document: Any) -> bytes:
    name = b"event: %b\n" % document["type"].encode() if "type" in document else b""
    return name + b"data: " + orjson.dumps(document) + b"\n\n"


def chunk(**delta: Any) -> dict[str, Any]:
    return {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}


@pytest.mark.parametrize(
    ("path", "opening", "piece"),
    [
        (CHAT, chunk(role="assistant", content=""), chunk(reasoning="hm")),
        (CHAT, chunk(role="assistant", content=""), chunk(reasoning="hm", reasoning_content="hm")),
        (CHAT, chunk(role="assistant"), chunk(tool_calls=[{"index": 0, "function": {"arguments": "{}"}}])),
        (MESSAGES, STARTED, DELTA | {"delta": {"type": "thinking_delta", "thinking": "hm"}}),
        (MESSAGES, STARTED, DELTA | {"delta": {"type": "input_json_delta", "partial_json": "{}"}}),
        (MESSAGES, STARTED, DELTA | {"delta": {"type": "text_delta", "text": "hm"}}),
        (
            RESPONSES,
            {"type": "response.created", "response": {}},
            {"type": "response.reasoning_text.delta", "delta": "hm"},
        ),
        (
            RESPONSES,
            {"type": "response.created", "response": {}},
            {"type": "response.function_call_arguments.delta", "delta": "{}"},
        ),
    ],
)
async def test_who_leaves_in_the_midst_pays_for_what_came(
    tmp_path: Path, path: str, opening: dict[str, Any], piece: dict[str, Any]
) -> None:
    """The engine hangs after these, and does not tokenize: each piece is a token, and the row says so."""
    said = [event(opening), *[event(piece)] * PIECES]
    async with opened(f"sqlite:///{tmp_path}/usage.db") as store:
        async with upstream(streams(*said, hang=True)) as engine:
            ledger = Ledger(store)
            tree: dict[str, Any] = {"engines": {"e": {"urls": [engine.url]}}, "models": {"m": {"engine": "e"}}}
            async with run_gateway(hot=True, ledger=ledger, **tree) as client:
                async with client.stream("POST", path, json={"model": "m", "stream": True, **ASKS[path]}) as answer:
                    came = b""
                    async for data in answer.aiter_raw():
                        came += data
                        if came.count(event(piece)) == PIECES:
                            break
                await asyncio.sleep(0.1)
                await ledger.close()
        row = await sums(store)
    assert (row["requests"], row["abandoned"], row["completion_tokens"]) == (1, 1, PIECES)
    assert row["prompt_tokens"] > 0
    assert row["estimated"] == 1


async def test_the_engine_is_asked_how_much_was_thought(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/usage.db") as store:
        async with simulator(Fault("cut", after=5)) as sim:
            async with gateway_with(Ledger(store), sim) as client:
                said = await ask(str(client.base_url), THINKING)
                await asyncio.sleep(1)
        row = await sums(store)
    assert (said.done, said.text) == (False, "")
    assert (row["cut"], row["estimated"], row["completion_tokens"]) == (1, 0, 5)
