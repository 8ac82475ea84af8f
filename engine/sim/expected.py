"""What the simulator will say, without asking it: for comparing retries and continuations byte for byte."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from engine.sim.asked import Model, asked
from engine.sim.choice import Choice


@dataclass(frozen=True, slots=True)
class Expected:
    """One choice: its text, the text of each token (the last may be empty: the end), and why it ends."""

    text: str
    tokens: Sequence[str]
    finish_reason: str
    stop_reason: str | None
    prompt_tokens: int

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens)


def expected(body: Mapping[str, Any], model: Model = Model(), path: str | None = None, choice: int = 0) -> Expected:
    """`path` is told by the body's fields where it is not given. Raises Refused as the simulator would."""
    wanted = asked(path or path_of(body), dict(body), model)
    said = Choice(choice, wanted, model)
    tokens = []
    while said.ended is None:
        tokens.append(orjson.loads(said.step()))
    each = len(wanted.prompts) // len(wanted.prompt_ids)
    ended = said.ended
    return Expected(ended.text, tokens, ended.reason, ended.stop, len(wanted.prompt_ids[choice // each]))


def path_of(body: Mapping[str, Any]) -> str:
    """A chat's for `messages`: Anthropic's are rendered as OpenAI's are."""
    if "prompt" in body:
        return "/v1/completions"
    return "/v1/responses" if "input" in body else "/v1/chat/completions"
