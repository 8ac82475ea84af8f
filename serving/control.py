"""The line between the parent and a worker: JSON messages, one a line, over a socket pair. Either may tell or ask."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

import orjson

LONGEST_MESSAGE_BYTES = 64 * 2**20

Told = Mapping[str, Callable[[Any], None]]
Asked = Mapping[str, Callable[[], Awaitable[Any]]]


class Channel:
    """One end. A message is [what, number of the question or null, value]; an answer's `what` is null."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._questions = 0
        self._open: dict[int, asyncio.Future[Any]] = {}

    @classmethod
    async def over(cls, line: socket.socket) -> Self:
        return cls(*await asyncio.open_unix_connection(sock=line, limit=LONGEST_MESSAGE_BYTES))

    def tell(self, what: str, value: Any = None) -> None:
        self._send([what, None, value])

    async def ask(self, what: str, within_s: float) -> Any:
        """The other end's answer. Raises TimeoutError, also when there is no other end any more."""
        self._questions += 1
        number = self._questions
        answer = self._open[number] = asyncio.get_running_loop().create_future()
        self._send([what, number, None])
        try:
            async with asyncio.timeout(within_s):
                return await answer
        finally:
            del self._open[number]

    async def receive(self) -> Any:
        """The value of the next message; for the first one, which tells the rest how to go. Raises EOFError."""
        message = await self._next()
        if message is None:
            raise EOFError("the other end is gone")
        return message[2]

    async def heed(self, told: Told, asked: Asked) -> None:
        """Does what the other end tells, and answers what it asks, until it is gone."""
        async with asyncio.TaskGroup() as answers:
            while (message := await self._next()) is not None:
                what, number, value = message
                if what is None:
                    if number in self._open and not self._open[number].done():
                        self._open[number].set_result(value)
                elif number is None:
                    told[what](value)
                else:
                    answers.create_task(self._answer(number, asked[what]))
            for answer in self._open.values():
                if not answer.done():
                    answer.set_exception(TimeoutError("the other end is gone"))

    async def close(self) -> None:
        """Returns when what was told has gone out."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):  # the other end was quicker
            await self._writer.wait_closed()

    async def _answer(self, number: int, find: Callable[[], Awaitable[Any]]) -> None:
        self._send([None, number, await find()])

    def _send(self, message: list[Any]) -> None:
        if not self._writer.is_closing():
            self._writer.write(orjson.dumps(message) + b"\n")

    async def _next(self) -> list[Any] | None:
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        return list(orjson.loads(line)) if line.endswith(b"\n") else None
