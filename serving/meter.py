"""What an answer of a composed model costs, call by call, and how much it may.

Every call of an engine that its steps make goes through the meter, whatever becomes of what it says: drafts, samples
that lost, calls that were cut short.
"""

from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from engine.affinity import CHARS_PER_TOKEN
from penstock.chat import Chat, ChatRequest, Delta, Emit, Reply, Usage
from penstock.errors import BudgetSpent, PenstockError
from serving.media import characters
from serving.policy import USUAL_COMPLETION_TOKENS

LONGEST_TOKEN_CHARS = 16
MOST_ANSWERS = 1024
"""What one request may ask of engines in all, calls and choices of calls, by the steps of the configuration."""
MOST_CHOSEN_ANSWERS = 64
"""The same, where the caller has chosen the steps: those of one within another multiply."""


@dataclass(eq=False, slots=True)
class Running:
    """A call of which the engine has not told yet what it cost."""

    request: ChatRequest
    pieces: list[str] = field(default_factory=list)
    tokens: int = 0
    """In them."""

    def estimated(self) -> Usage:
        """Four characters a token for the prompt; a piece of a stream is a token, most often."""
        wire = self.request.to_wire()
        prompt = sum(characters(wire.get(name)) for name in ("messages", "tools", "functions"))
        return Usage(prompt // CHARS_PER_TOKEN, self.tokens)


class Meter:
    """`budget`: the tokens that all calls of one answer may generate together; None is without limit. `answers`: how
    many they may ask for together, a call with `n` for n of them."""

    def __init__(self, budget: int | None = None, answers: int = MOST_ANSWERS) -> None:
        self.budget = budget
        self.answers = answers
        self._asked = 0
        self.came = 0
        """How many pieces have, of all calls."""
        self._ended = Usage()
        self._calls: list[Usage] = []
        self._generated = 0
        """By all calls, those that run among them."""
        self._estimated = False
        self._running: set[Running] = set()
        self._guards: dict[str, Meter] = {}

    def of_guard(self, name: str) -> "Meter":
        """For what this guard asks: it costs as much, but a caller's budget is none of a guard's, and what it leaves
        would decide whether it can look."""
        return self._guards.setdefault(name, Meter(answers=self.answers))

    def told(self) -> tuple[Usage, bool]:
        """What all calls have cost until now, those of guards too, and whether some of it is an estimate."""
        total, estimated = self.own()
        for guard in self._guards.values():
            usage, also = guard.told()
            total, estimated = total + usage, estimated or also
        return total, estimated

    def own(self) -> tuple[Usage, bool]:
        """The same without what guards have asked."""
        total, estimated = self._ended, self._estimated
        for running in self._running:
            total, estimated = total + running.estimated(), True
        return total, estimated

    def guards(self) -> Usage:
        """What guards have asked, call by call, each by its guard's name."""
        asked = [usage.of(name) for name, guard in self._guards.items() for usage in guard._all()]
        return sum(asked, start=Usage())

    def _all(self) -> list[Usage]:
        """Call by call, with what the guards of a model have asked that a guard has."""
        return [*self._calls, *(usage for guard in self._guards.values() for usage in guard._all())]

    def add(self, usage: Usage) -> None:
        """A call that is over, of an engine that generates nothing."""
        self._end(usage)

    def _end(self, usage: Usage) -> None:
        self._ended += usage
        self._calls.append(replace(usage, calls=()))

    def around(self, chat: Chat) -> Chat:
        """An engine's `Chat`, whose calls are counted. Raises BudgetSpent."""

        async def metered(request: ChatRequest, emit: Emit) -> Reply:
            self._count(request)
            running = Running(self._within(request))
            pieces = running.pieces
            self._running.add(running)

            async def heard(delta: Delta) -> None:
                self.came += 1
                text = text_of(delta)
                pieces.append(text)
                tokens = tokens_in_piece(text)
                running.tokens += tokens
                self._generated += tokens
                if self.budget is not None and self._generated > self.budget and len(self._running) > 1:
                    raise spent(self.budget)  # each was let have what was left when it began
                await emit(delta)

            told = False
            try:
                reply = await chat(running.request, heard)
                if reply.usage != Usage():
                    told = True
                    self._end(reply.usage)
                    self._generated += reply.usage.completion_tokens - running.tokens
                return reply
            except PenstockError:
                told = not pieces  # refused, and not begun
                raise
            finally:
                self._running.discard(running)
                if not told:
                    self._estimated = True
                    self._end(running.estimated())

        return metered

    def _count(self, request: ChatRequest) -> None:
        """Before the call: what is too much is not asked."""
        self._asked = counted(self._asked, request, self.answers)

    def between(self, chat: Chat) -> Chat:
        """What a step asks, the same bound at each step: side by side, those of one within another would all be there
        before the first of them gets to an engine. Raises BudgetSpent."""
        asked = 0

        def bounded(request: ChatRequest, emit: Emit) -> Coroutine[Any, Any, Reply]:
            nonlocal asked
            try:
                asked = counted(asked, request, self.answers)
            except BudgetSpent as error:
                return failing(error)
            return chat(request, emit)  # and no call in between, which would cost each piece of the answer

        return bounded

    def _within(self, request: ChatRequest) -> ChatRequest:
        if self.budget is None:
            return request
        left = self.budget - self.own()[0].completion_tokens
        each = left // (getattr(request, "n", None) or 1)
        if each < 1:
            raise spent(self.budget)
        limits = [getattr(request, name, None) for name in ("max_completion_tokens", "max_tokens")]
        if request.is_plain and not any(limits):
            limits = [USUAL_COMPLETION_TOKENS]
        return request.but(max_tokens=min([each, *(limit for limit in limits if limit)]), max_completion_tokens=None)


async def failing(error: Exception) -> Reply:
    raise error


def counted(before: int, request: ChatRequest, most: int) -> int:
    """How many answers have been asked for with this request. Raises BudgetSpent."""
    more = getattr(request, "n", None) or 1
    if before + more > most:
        raise BudgetSpent(
            f"a request of this model may ask engines for {most} answers, and its steps want more: choose fewer steps, "
            "samples or choices"
        )
    return before + more


def spent(budget: int) -> BudgetSpent:
    return BudgetSpent(f"this model may use {budget} tokens for an answer, and has used them: ask for less at once")


def text_of(delta: Delta) -> str:
    """All that was generated for it."""
    if not delta.tool_calls:
        return delta.content + delta.reasoning
    functions = [call.get("function") or {} for call in delta.tool_calls]
    calls = [function.get(name) or "" for function in functions for name in ("name", "arguments")]
    return "".join([delta.content, delta.reasoning, *calls])


def tokens_in_piece(piece: str) -> int:
    """More than one where a guard has held a sentence back, or an engine sends several at once."""
    return 1 if len(piece) <= LONGEST_TOKEN_CHARS else len(piece) // CHARS_PER_TOKEN
