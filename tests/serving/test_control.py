"""The line between two processes, here both its ends in one."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serving.control import Asked, Channel, Told

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def line(told: Told, asked: Asked) -> AsyncIterator[tuple[Channel, asyncio.Task[None]]]:
    """One end, whose other does as it is told; and the task that ends when this one is gone."""
    one, other = socket.socketpair()
    here, there = await Channel.over(one), await Channel.over(other)
    hearing = [asyncio.create_task(here.heed({}, {})), asyncio.create_task(there.heed(told, asked))]
    try:
        yield here, hearing[1]
    finally:
        await here.close()
        await asyncio.wait(hearing)
        await there.close()


async def answer() -> Any:
    return {"key": "x" * 200_000}


async def never() -> Any:
    await asyncio.sleep(60)


async def test_what_is_told_arrives_in_its_order() -> None:
    heard: list[int] = []
    async with line({"number": heard.append}, {}) as (channel, other):
        for number in range(1000):
            channel.tell("number", number)
    await other
    assert heard == list(range(1000))


async def test_questions_are_answered_each_with_its_own_while_others_wait() -> None:
    waiting = asyncio.Event()

    async def late() -> str:
        await waiting.wait()
        return "late"

    async with line({}, {"late": late, "soon": answer}) as (channel, _):
        first = asyncio.create_task(channel.ask("late", 5))
        assert await channel.ask("soon", 5) == await answer()
        waiting.set()
        assert await first == "late"


async def test_a_question_without_an_answer_is_a_timeout() -> None:
    async with line({}, {"never": never}) as (channel, other):
        with pytest.raises(TimeoutError):
            await channel.ask("never", 0.1)
        other.cancel()


async def test_a_question_to_nobody_is_a_timeout_at_once() -> None:
    one, other = socket.socketpair()
    here, there = await Channel.over(one), await Channel.over(other)
    hearing = asyncio.create_task(here.heed({}, {}))
    question = asyncio.create_task(here.ask("anything", 60))
    await asyncio.sleep(0)
    await there.close()
    async with asyncio.timeout(5):
        with pytest.raises(TimeoutError):
            await question
        await hearing
    await here.close()


async def test_the_first_message_is_read_alone_and_the_end_of_the_line_is_told() -> None:
    one, other = socket.socketpair()
    here, there = await Channel.over(one), await Channel.over(other)
    here.tell("orders", {"number": 1})
    assert await there.receive() == {"number": 1}
    await here.close()
    with pytest.raises(EOFError):
        await there.receive()
    await there.close()
