"""A `Chat` that answers as it is told: set text, set pace, set failures, always the same. No weights, no model.

The fake of the tests, and the engine of `penstock serve --engine scripted`, for trying the gateway.
"""

import asyncio
import re
from collections import deque
from collections.abc import Sequence

from penstock.chat import ChatRequest, Delta, Emit, Message, Reply, Usage
from penstock.errors import BadRequest, PenstockError

TOKEN = re.compile(r"\s*\S+|\s+")
KEPT_CALLS = 1000


class Scripted:
    """`answers` are given in turn, the last for ever; `{prompt}` in one stands for the last message's text.

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
        answer = self.answers[min(self.answered, len(self.answers) - 1)]
        self.answered += 1
        self.calls.append(request)
        self.running += 1
        try:
            return await self._say(answer.replace("{prompt}", request.messages[-1].text), request, emit)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _say(self, answer: str, request: ChatRequest, emit: Emit) -> Reply:
        tokens = TOKEN.findall(answer)
        said = tokens[: token_limit(request)]
        for count, token in enumerate(said):
            if self.failure and count == self.fail_after:
                raise self.failure
            await asyncio.sleep(self.pace_s)
            await emit(Delta(content=token))
        if self.failure and self.fail_after >= len(said):
            raise self.failure
        prompt_tokens = sum(len(TOKEN.findall(message.text)) for message in request.messages)
        return Reply(
            Message(role="assistant", content="".join(said)),
            "stop" if len(said) == len(tokens) else "length",
            Usage(prompt_tokens, len(said)),
        )


def token_limit(request: ChatRequest) -> int | None:
    wire = request.to_wire()
    if (wire.get("n") or 1) != 1:
        raise BadRequest("one answer at a time: n must be 1", param="n")
    limit = wire.get("max_completion_tokens") or wire.get("max_tokens")
    return int(limit) if limit else None
