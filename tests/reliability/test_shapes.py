"""However an engine forms a well-meant stream, the caller gets plain events with exactly its text."""

import asyncio
from itertools import combinations
from typing import Any

import pytest

from engine.sim import Fault, Simulator, simulator
from tests.reliability.client import CHAT, TEXT, Said
from tests.reliability.conftest import ASK, WITH_USAGE, Behind, about

pytestmark = pytest.mark.anyio

SHAPES = ["split", "crlf", "comments", "multi_line", "informational", "slow_head", "connection_close"]
TEXT_BODY = {
    "model": "sim",
    "prompt": "The river",
    "max_tokens": 40,
    "stream": True,
    "stream_options": {"include_usage": True},
}
FEW = [(one,) for one in SHAPES] + list(combinations(SHAPES, 2)) + [tuple(SHAPES)]


def shaped(kind: str) -> Fault:
    return Fault(kind, delay_s=0.02)


def is_exactly(said: Said, body: dict[str, Any], sim: Simulator) -> bool:
    wanted = sim.expected(body)
    assert said.usage
    counts = said.usage["prompt_tokens"], said.usage["completion_tokens"]
    assert counts == (wanted.prompt_tokens, wanted.completion_tokens)
    return (said.text, said.finish, said.done) == (wanted.text, {0: wanted.finish_reason}, True)


@pytest.mark.parametrize(("path", "body"), [(CHAT, WITH_USAGE), (TEXT, TEXT_BODY)])
async def test_the_text_is_the_same_in_whatever_shape_it_comes(before: Behind, path: str, body: dict[str, Any]) -> None:
    async with simulator(mean_tokens=20) as sim, before(sim) as gateway:
        for kinds in FEW:
            sim.faults[:] = map(shaped, kinds)
            assert is_exactly(await gateway.ask(body, path), body, sim), kinds


async def test_a_cut_in_any_shape_is_continued_in_any_other(before: Behind) -> None:
    async with simulator(mean_tokens=20) as first, simulator(mean_tokens=20) as second:
        async with before(first, second, routing={"affinity": "off", "breaker_failures": 1000}) as gateway:
            for number, (one, other) in enumerate(combinations([*SHAPES, "null_delta", "no_done", "after_done"], 2)):
                body = about(number, WITH_USAGE)
                cut = Fault("cut", after=number, times=1)
                first.faults[:], second.faults[:] = [shaped(one), cut], [shaped(other), cut]
                assert is_exactly(await gateway.ask(body), body, first), (one, other)


@pytest.mark.parametrize("kind", ["split", "informational", "slow_head", "connection_close"])
async def test_whole_answers_pass_in_whatever_shape_they_come(before: Behind, kind: str) -> None:
    async with simulator(shaped(kind)) as sim, before(sim) as gateway:
        answers = await asyncio.gather(*(gateway.ask(about(number, ASK)) for number in range(4)))
        for number, said in enumerate(answers):
            wanted = sim.expected(about(number, ASK)).text
            assert said.json["choices"][0]["message"]["content"] == wanted


async def test_what_cannot_be_framed_is_no_answer(before: Behind) -> None:
    async with simulator(Fault("te_and_cl")) as sim, before(sim) as gateway:
        assert (await gateway.ask(WITH_USAGE)).status == 502


async def test_an_answer_streamed_that_was_not_asked_for_as_a_stream_is_none(before: Behind) -> None:
    async with simulator() as sim:
        url = sim.url

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Asks the simulator for a stream whatever it is asked for."""
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:  # a probe that was given up
                return writer.close()
            body = await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0))
            host, port = url.removeprefix("http://").split(":")
            back, forth = await asyncio.open_connection(host, int(port))
            body = body.replace(b"{", b'{"stream":true,', 1)
            method, path, _ = head.split(b" ", 2)
            forth.write(b"%b %b HTTP/1.1\r\nconnection: close\r\n" % (method, path))
            forth.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))
            writer.write(await back.read())
            writer.close()
            forth.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        async with before(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as gateway:
            said = await gateway.ask(ASK)
        server.close()
    assert (said.status, said.error and said.error["code"]) == (502, "engine_error")
