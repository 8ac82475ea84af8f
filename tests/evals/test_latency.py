"""Two models beside each other on one clock: who is asked when, and what is made of the times."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from engine.openai import OpenAIChat
from engine.pool import Pool
from engine.replica import Replica
from engine.sim import simulator
from evals.latency import Ask, Pace, Timed, asking, in_turn, judged, pace
from penstock.gates import Latency

PROMPTS = [[{"role": "user", "content": text}] for text in "abc"]


def saying(name: str, asked: list[str], first_s: Sequence[float]) -> Ask:
    times = iter(first_s)

    async def ask(messages: Sequence[Mapping[str, Any]]) -> Timed:
        asked.append(f"{name}{messages[0]['content']}")
        return Timed(next(times), 0.01)

    return ask


def test_both_are_asked_the_same_and_each_is_first_as_often() -> None:
    asked: list[str] = []
    one, other = saying("1", asked, [9, 1, 2, 3, 4]), saying("2", asked, [9, 5, 5, 5, 6])
    paces = asyncio.run(in_turn(one, other, PROMPTS, 4))
    assert asked[:2] == ["1a", "2a"]  # what is slow the first time counts for nobody
    assert [pair[:1] for pair in asked[2:]] == list("21122112")
    assert [pair[1:] for pair in asked[2:]] == list("aabbccaa")
    assert paces == (Pace(2.5, 0.01), Pace(5, 0.01))


@pytest.mark.parametrize(
    ("mine", "its", "verdict", "says"),
    [
        (
            Pace(0.14, 0.01),
            Pace(0.1, 0.01),
            "passed",
            "140 ms to the first token, 100.0 tokens/s; the incumbent 100 ms",
        ),
        (Pace(0.16, 0.01), Pace(0.1, 0.01), "failed", "the first token takes 1.60 times as long, more than 1.5"),
        (Pace(0.1, 0.03), Pace(0.1, 0.01), "failed", "each further one takes 3.00 times as long"),
        (Pace(0.1, 0.01), Pace(0.0, 0.0), "passed", "many tokens/s"),
    ],
)
def test_the_bounds_are_of_ratios(mine: Pace, its: Pace, verdict: str, says: str) -> None:
    found = judged(mine, its, Latency(), in_turn=True)
    assert found.verdict == verdict
    assert says in found.why
    json.dumps(found.figures, allow_nan=False)


def test_one_after_the_other_is_said_to_be_less_sure() -> None:
    assert "less sure" in judged(Pace(1, 1), Pace(1, 1), Latency(), in_turn=False).why


def test_answers_of_one_token_have_no_pace() -> None:
    assert pace([Timed(1, None), Timed(3, None)]) == Pace(2, 0)
    assert pace([Timed(1, 0.5), Timed(3, None)]) == Pace(2, 0.5)


def test_an_answer_is_timed_from_its_request_to_its_end() -> None:
    """The simulator waits before the first token and between two: neither can have taken less."""

    async def timed() -> Timed:
        async with simulator(ttft_s=0.1, itl_s=0.01) as sim:
            replica = Replica.at("sim", sim.url)
            replica.set_ready(True)
            try:
                found = await asking(OpenAIChat(Pool("sim", [replica], 0)), "sim", 8)(PROMPTS[0])
            finally:
                replica.close()
            assert sim.requests[0].body["ignore_eos"] is True
            return found

    found = asyncio.run(timed())
    assert found.first_s >= 0.1
    assert found.each_s
    assert found.each_s >= 0.01 * 0.9
