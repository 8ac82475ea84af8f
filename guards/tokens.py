"""Texts in a served model's own tokens: for models that classify, and take only so many at once."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.errors import EngineError
from penstock.steps import Parts

LETTER = "a"
SEPARATOR = "</s>"
"""RoBERTa's and XLM-R's: it stands twice between the two texts of a pair. Their positions begin with two that no token
has, and that vLLM (0.32) counts when it tells how many tokens such a model takes."""
AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Frame:
    """What a tokenizer lays around a text, and how many tokens that and the text may have together."""

    begin: Sequence[int]
    end: Sequence[int]
    longest: int
    doubled: bool = False
    """Of a pair: whether what ends its first text stands there twice."""

    @property
    def room(self) -> int:
        """For one text."""
        return self.longest - len(self.begin) - len(self.end)

    @property
    def room_of_pair(self) -> int:
        return self.room - len(self.between)

    @property
    def between(self) -> list[int]:
        return [*self.end] * (2 if self.doubled else 1)

    def text(self, tokens: Sequence[int]) -> list[int]:
        return [*self.begin, *tokens, *self.end]

    def pair(self, one: Sequence[int], other: Sequence[int]) -> list[int]:
        return [*self.begin, *one, *self.between, *other, *self.end]


async def frame_of(parts: Parts, model: str) -> Frame:
    """Asked of the engine. Not to be kept: by the next time another model may have the name. Raises EngineError."""
    alone = await parts.ask(model, "/tokenize", {"prompt": LETTER, "add_special_tokens": False})
    within = await parts.ask(model, "/tokenize", {"prompt": LETTER, "return_token_strs": True})
    letter, tokens, names = alone["tokens"], within["tokens"], within["token_strs"]
    starts = [at for at in range(len(tokens)) if letter and tokens[at : at + len(letter)] == letter]
    if not starts:
        raise EngineError(f"{model} does not say what its tokenizer lays around a text")
    begin, end = tokens[: starts[0]], tokens[starts[0] + len(letter) :]
    doubled = bool(end) and names[-1] == SEPARATOR
    return Frame(begin, end, int(within["max_model_len"]) - (2 if doubled else 0), doubled)


async def tokens_of(parts: Parts, model: str, texts: Sequence[str], frame: Frame) -> list[list[int]]:
    """Without what a text has of the frame itself: none ends before its end. Raises EngineError."""
    few = asyncio.Semaphore(AT_ONCE)  # of an engine that answers others, too

    async def tokens(text: str) -> list[int]:
        async with few:
            answer = await parts.ask(model, "/tokenize", {"prompt": text, "add_special_tokens": False})
        return [token for token in answer["tokens"] if token not in frame.begin and token not in frame.end]

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(tokens(text)) for text in texts]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def cut(tokens: Sequence[int], longest: int, overlap: int = 0) -> list[Sequence[int]]:
    """`[1, 2, 3, 4], 3, 1 -> [[1, 2, 3], [3, 4]]`. `overlap` is less than `longest`."""
    ends = max(len(tokens) - overlap, min(len(tokens), 1))
    return [tokens[start : start + longest] for start in range(0, ends, longest - overlap)]
