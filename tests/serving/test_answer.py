"""What composed models' answers cost, whether they come to their end or not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from engine.affinity import DEFAULT_OUTPUT_TOKENS
from engine.scripted import Scripted
from penstock.chat import Chat, ChatRequest, Delta, Emit, Message, Reply, Usage, silent
from penstock.errors import EngineError
from penstock.keyring import Keyring, wanted
from penstock.store import Store, opened
from penstock.used import used
from serving.admission import EVERY_S
from serving.ledger import Ledger
from serving.meter import LONGEST_TOKEN_CHARS, Meter
from tests.serving.conftest import Running, run_gateway

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
PROMPT = "Say forty characters of nothing, please."
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]}
STREAM = BODY | {"stream": True}
TPM = 100_000
PEPPER = "pepper of the tests, which is long enough"


class Counted:
    """The scripted engine, and how many pieces it has given."""

    def __init__(self, chat: Scripted) -> None:
        self.chat = chat
        self.pieces = 0

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply:
        async def count(delta: Delta) -> None:
            self.pieces += 1
            await emit(delta)

        return await self.chat(request, count)


def endless() -> Counted:
    return Counted(Scripted(["word " * 10_000], pace_s=0.003))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(f"sqlite:///{tmp_path}/usage.db") as store:
        yield store


async def until(counted: Counted, pieces: int) -> None:
    async with asyncio.timeout(10):
        while counted.pieces < pieces:
            await asyncio.sleep(0.005)


async def left_after(client: httpx2.AsyncClient, counted: Counted, pieces: int, body: dict[str, Any]) -> None:
    """A client that hangs up once so many pieces were generated; returns when the generation has ended."""
    asking = asyncio.create_task(client.post(CHAT, json=body))
    await until(counted, counted.pieces + pieces)
    asking.cancel()
    await asyncio.wait([asking])
    async with asyncio.timeout(10):
        while counted.chat.running:
            await asyncio.sleep(0.005)


async def charged(gateway: Running, store: Store, chat: Chat, *bodies: dict[str, Any]) -> dict[str, Any]:
    """What the ledger says of these requests, asked one after the other."""
    ledger = Ledger(store)
    async with gateway({"m": chat}, ledger=ledger) as client:
        for body in bodies:
            await client.post(CHAT, json=body)
    await ledger.close()
    (row,) = await used(store, [])
    return row


@pytest.mark.parametrize("body", [STREAM, BODY], ids=["stream", "whole"])
async def test_who_leaves_pays_for_what_was_generated(gateway: Running, store: Store, body: dict[str, Any]) -> None:
    chat, ledger = endless(), Ledger(store)
    async with gateway({"m": chat}, ledger=ledger) as client:
        await left_after(client, chat, 5, body)
    await ledger.close()
    (row,) = await used(store, [])
    assert (row["requests"], row["abandoned"], row["estimated"]) == (1, 1, 1)
    assert row["prompt_tokens"] == len(PROMPT) // 4
    assert row["completion_tokens"] == chat.pieces >= 5


async def test_one_that_all_who_share_it_have_left_is_paid_for_too(gateway: Running, store: Store) -> None:
    chat, ledger = endless(), Ledger(store)
    async with gateway({"m": chat}, ledger=ledger) as client:
        client.headers["idempotency-key"] = "one"
        await left_after(client, chat, 5, STREAM)
    await ledger.close()
    (row,) = await used(store, [])
    assert (row["requests"], row["abandoned"], row["completion_tokens"]) == (1, 1, chat.pieces)


async def test_an_answer_that_comes_to_its_end_costs_what_its_chat_says(gateway: Running, store: Store) -> None:
    async def composed(request: ChatRequest, emit: Emit) -> Reply:
        await emit(Delta("one word"))
        return Reply(Message(role="assistant", content="one word"), usage=Usage(300, 200, 100))

    row = await charged(gateway, store, composed, BODY | {"max_tokens": 9}, STREAM | {"max_tokens": 9})
    assert (row["prompt_tokens"], row["completion_tokens"], row["cached_tokens"]) == (600, 400, 200)
    assert (row["requests"], row["estimated"], row["abandoned"], row["cut"]) == (2, 0, 0, 0)


async def test_of_a_chat_that_says_nothing_the_pieces_are_counted(gateway: Running, store: Store) -> None:
    async def mute(request: ChatRequest, emit: Emit) -> Reply:
        for word in ("one", " two", " three"):
            await emit(Delta(word))
        return Reply(Message(role="assistant", content="one two three"))

    row = await charged(gateway, store, mute, BODY, STREAM)
    assert (row["requests"], row["estimated"], row["completion_tokens"]) == (2, 2, 6)
    assert row["prompt_tokens"] == 2 * (len(PROMPT) // 4)


async def test_a_stream_that_fails_costs_what_came_and_a_refusal_nothing(gateway: Running, store: Store) -> None:
    failing = Scripted(["one two three"], failure=EngineError("broke"), fail_after=2)
    row = await charged(gateway, store, failing, STREAM, BODY)
    assert (row["requests"], row["cut"], row["completion_tokens"]) == (1, 1, 2)


@asynccontextmanager
async def limited(folder: Path, chat: Chat) -> AsyncIterator[httpx2.AsyncClient]:
    """A client with a key that has TPM tokens a minute."""
    database = f"sqlite:///{folder}/keys.db"
    async with opened(database) as store:
        key = (await Keyring(store, PEPPER.encode()).create(wanted({"name": "a", "tpm": TPM}), "test")).key
    state = {"database": database, "pepper": PEPPER}
    async with run_gateway({"m": chat}, hot=True, stored=True, state=state) as client:
        client.headers["authorization"] = f"Bearer {key}"
        yield client


async def remaining(client: httpx2.AsyncClient) -> int:
    answer = await client.post(CHAT, json=BODY | {"max_tokens": 1})
    return int(answer.headers["x-ratelimit-remaining-tokens"])


async def test_what_who_left_has_generated_counts_in_the_limits(tmp_path: Path) -> None:
    chat = endless()
    async with limited(tmp_path, chat) as client:
        await left_after(client, chat, 100, STREAM)
        assert TPM - 200 < await remaining(client) <= TPM - 100


async def test_a_stream_counts_in_the_limits_while_it_runs(tmp_path: Path) -> None:
    chat = endless()
    async with limited(tmp_path, chat) as client:
        asking = asyncio.create_task(client.post(CHAT, json=STREAM))
        await until(chat, 2 * DEFAULT_OUTPUT_TOKENS)  # more than was reserved for it
        await asyncio.sleep(EVERY_S + 0.2)
        assert await remaining(client) <= TPM - 2 * DEFAULT_OUTPUT_TOKENS
        asking.cancel()
        await asyncio.wait([asking])


@pytest.mark.parametrize(
    ("text", "tokens"),
    [([], 0), (["a", "b", ""], 3), (["x" * LONGEST_TOKEN_CHARS], 1), (["A whole sentence, held back. " * 4], 29)],
)
async def test_a_long_piece_is_more_than_a_token(text: list[str], tokens: int) -> None:
    async def mute(request: ChatRequest, emit: Emit) -> Reply:
        for piece in text:
            await emit(Delta(piece))
        return Reply(Message(role="assistant", content="".join(text)))

    meter = Meter()
    await meter.around(mute)(ChatRequest(**BODY), silent)
    usage, estimated = meter.told()
    assert (usage.completion_tokens, estimated) == (tokens, True)
