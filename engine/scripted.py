"""A `Chat` that answers as it is told: set text, set pace, set failures, always the same. No weights, no model.

The fake of the tests, and the engine of `penstock serve --engine scripted`, for trying the gateway.
"""

import asyncio
import re
from collections import deque
from collections.abc import Sequence

from penstock.chat import ChatRequest, Choice, Delta, Emit, Message, Reply, Usage
from penstock.errors import PenstockError

TOKEN = re.compile(r"\s*\S+|\s+")
KEPT_CALLS = 1000


class Scripted:
    """`answers` are given in turn, the last for ever; `{prompt}` in one stands for the last message's text. A request
    for n choices takes the next n of them.

    A token is a word with the space before it; `pace_s` is the time between two. With `failure` set, it is raised
    after `fail_after` tokens have been streamed. `calls` keeps the last requests, `cancelled` counts those cut off.
    """

    def __init__(
        self,
        answers: Sequence[str] = ("You wrote: {prompt}",),
        *,
        pace_s: float = 0.0,
        failure: PenstockError | None = None,
        fail_after: int = 0,
    ) -> None:
        self.answers = list(answers)
        self.pace_s = pace_s
        self.failure = failure
        self.fail_after = fail_after
        self.calls: deque[ChatRequest] = deque(maxlen=KEPT_CALLS)
        self.answered = 0
        self.running = 0
        self.cancelled = 0

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply:
        self.calls.append(request)
        self.running += 1
        try:
            asked = request.messages[-1].text
            answers = [self._next().replace("{prompt}", asked) for _ in range(getattr(request, "n", None) or 1)]
            replies = [await self._say(answer, index, request, emit) for index, answer in enumerate(answers)]
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        prompt_tokens = sum(len(TOKEN.findall(message.text)) for message in request.messages)
        return Reply.of([choice for choice, _ in replies], Usage(prompt_tokens, sum(count for _, count in replies)))

    def _next(self) -> str:
        answer = self.answers[min(self.answered, len(self.answers) - 1)]
        self.answered += 1
        return answer

    async def _say(self, answer: str, index: int, request: ChatRequest, emit: Emit) -> tuple[Choice, int]:
        """The choice, and how many tokens it took."""
        tokens = TOKEN.findall(answer)
        said = tokens[: token_limit(request)]
        for count, token in enumerate(said):
            if self.failure and count == self.fail_after:
                raise self.failure
            await asyncio.sleep(self.pace_s)
            await emit(Delta(content=token, choice=index))
        if self.failure and self.fail_after >= len(said):
            raise self.failure
        message = Message(role="assistant", content="".join(said))
        return Choice(message, "stop" if len(said) == len(tokens) else "length"), len(said)


def token_limit(request: ChatRequest) -> int | None:
    wire = request.to_wire()
    limit = wire.get("max_completion_tokens") or wire.get("max_tokens")
    return int(limit) if limit else None
