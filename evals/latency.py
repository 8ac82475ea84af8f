"""Whether one model is slower than another: asked in turn, by one request at a time, the same prompts, medians.

Whatever else the machine does meets both alike. Which of the two goes first changes with every pair.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from evals.report import Finding, failed, passed
from penstock.chat import Chat, ChatRequest, Delta, Message
from penstock.gates import Latency

Ask = Callable[[Sequence[Mapping[str, Any]]], Awaitable["Timed"]]


@dataclass(frozen=True)
class Timed:
    """Seconds to the first token of an answer, and for each further one; None where there was no second."""

    first_s: float
    each_s: float | None


def asking(chat: Chat, model: str, tokens: int) -> Ask:
    async def ask(messages: Sequence[Mapping[str, Any]]) -> Timed:
        """An end does not end it: a short answer would say little of the pace."""
        request = ChatRequest(
            model=model,
            messages=[Message(**one) for one in messages],
            **{"temperature": 0, "max_tokens": tokens, "ignore_eos": True},
        )
        first: list[float] = []

        async def emit(delta: Delta) -> None:
            if not first:
                first.append(time.perf_counter())

        began = time.perf_counter()
        reply = await chat(request, emit)
        ended = time.perf_counter()
        begun = first[0] if first else ended
        more = reply.usage.completion_tokens - 1
        return Timed(begun - began, (ended - begun) / more if more > 0 else None)

    return ask


async def in_turn(
    one: Ask, other: Ask, prompts: Sequence[Sequence[Mapping[str, Any]]], requests: int
) -> tuple["Pace", "Pace"]:
    """One answer of each before, which warms what is slow the first time."""
    for ask in (one, other):
        await ask(prompts[0])
    timed: tuple[list[Timed], list[Timed]] = ([], [])
    for number in range(requests):
        prompt = prompts[number % len(prompts)]
        for place in (0, 1) if number % 2 else (1, 0):
            timed[place].append(await (one, other)[place](prompt))
    return pace(timed[0]), pace(timed[1])


async def alone(ask: Ask, prompts: Sequence[Sequence[Mapping[str, Any]]], requests: int) -> "Pace":
    await ask(prompts[0])
    return pace([await ask(prompts[number % len(prompts)]) for number in range(requests)])


@dataclass(frozen=True)
class Pace:
    """Medians, in seconds."""

    first_s: float
    each_s: float

    @property
    def shown(self) -> str:
        rate = f"{1 / self.each_s:.1f}" if self.each_s else "many"
        return f"{self.first_s * 1000:.0f} ms to the first token, {rate} tokens/s"


def pace(timed: Sequence[Timed]) -> Pace:
    further = [each.each_s for each in timed if each.each_s is not None]
    return Pace(median(each.first_s for each in timed), median(further) if further else 0.0)


def judged(candidate: Pace, incumbent: Pace, asked: Latency, *, in_turn: bool) -> Finding:
    first = ratio(candidate.first_s, incumbent.first_s)
    each = ratio(candidate.each_s, incumbent.each_s)
    how = "asked in turn" if in_turn else "one after the other, which is less sure"
    shown = f"{candidate.shown}; the incumbent {incumbent.shown} ({how})"
    figures = {
        "first_token_s": [incumbent.first_s, candidate.first_s],
        "per_token_s": [incumbent.each_s, candidate.each_s],
        "first_token": first,
        "per_token": each,
        "in_turn": in_turn,
    }
    slow = [
        f"{what} takes {found:.2f} times as long, more than {most:g}"
        for what, found, most in (
            ("the first token", first, asked.first_token),
            ("each further one", each, asked.per_token),
        )
        if found > most
    ]
    if slow:
        return failed("latency", f"{' and '.join(slow)}: {shown}", **figures)
    return passed("latency", shown, **figures)


def ratio(one: float, other: float) -> float:
    """1 where there was nothing to measure."""
    return one / other if other else 1.0
