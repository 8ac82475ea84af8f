"""A publisher of KV events in vLLM's protocol, each of whose messages the test decides."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

msgspec = pytest.importorskip("msgspec", reason="msgspec is not installed")
zmq = pytest.importorskip("zmq", reason="pyzmq is not installed")
asyncio_zmq = pytest.importorskip("zmq.asyncio", reason="pyzmq is not installed")

PATIENCE_S = 30


def stored(*names: int, after: int | None = None, tokens: list[int], **more: Any) -> dict[str, Any]:
    """Blocks of four tokens, as vLLM tells of them."""
    event = {"block_hashes": names, "parent_block_hash": after, "token_ids": tokens, "block_size": 4}
    told = {"type": "BlockStored", "lora_id": None, "medium": "GPU", "lora_name": None, "group_idx": 0}
    return told | event | more


def removed(*names: int, **more: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": names, "medium": "GPU", "group_idx": 0} | more


class Publisher:
    """vLLM's protocol: numbered batches, and a place where they are repeated. `kept` may be made to forget some."""

    def __init__(self, endpoint: str, replay: str | None, topic: str) -> None:
        self.topic = topic.encode()
        self.kept: list[tuple[int, bytes]] = []
        self.number = 0
        self.context = asyncio_zmq.Context()
        # An XPUB is a PUB that hears of its subscribers.
        self.socket = self.bound(zmq.XPUB, endpoint)
        self.repeating = asyncio.create_task(self.repeat(self.bound(zmq.ROUTER, replay))) if replay else None

    def bound(self, kind: int, endpoint: str) -> Any:
        socket = self.context.socket(kind)
        socket.linger = 0
        socket.bind(endpoint)
        return socket

    async def subscribed(self) -> None:
        """Returns when a subscriber has come: what is published earlier is lost to it."""
        async with asyncio.timeout(PATIENCE_S):
            while not (await self.socket.recv()).startswith(b"\1"):
                pass

    async def publish(self, *events: Any, lost: bool = False) -> None:
        await self.send(msgspec.msgpack.encode([0.5, events, 0]), lost=lost)

    async def send(self, payload: bytes, *, lost: bool = False) -> None:
        """`lost`: on its way."""
        if not lost:
            await self.socket.send_multipart([self.topic, self.number.to_bytes(8), payload])
        self.kept.append((self.number, payload))
        self.number += 1

    async def repeat(self, socket: Any) -> None:
        while True:
            client, empty, start = await socket.recv_multipart()
            for number, payload in self.kept:
                if number >= int.from_bytes(start):
                    await socket.send_multipart([client, empty, self.topic, number.to_bytes(8), payload])
            await socket.send_multipart([client, empty, b"", (-1).to_bytes(8, signed=True), b""])

    async def close(self) -> None:
        if self.repeating:
            self.repeating.cancel()
            with suppress(asyncio.CancelledError):
                await self.repeating
        self.context.destroy(linger=0)


@asynccontextmanager
async def publishing(endpoint: str, replay: str | None = None, topic: str = "") -> AsyncIterator[Publisher]:
    publisher = Publisher(endpoint, replay, topic)
    try:
        yield publisher
    finally:
        await publisher.close()
