"""How much of an answer the passages support that it was to be made from: a support score, no proof of truth.

Of each sentence of the answer, the share of its content words that the passage next to it has (recall, as in ROUGE-1,
Lin 2004), or the nearness of their embeddings. The answer's score is the mean over its sentences. A sentence that says
the opposite in the same words has a high one.

Without passages, samples: further answers of the same model to the same request stand in for them (SelfCheckGPT,
Manakul et al., 2023, arXiv:2303.08896). What a model makes up, it makes up differently each time.
"""

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from pydantic import Field, model_validator

from guards.guard import NOTHING, Asking, Look, Looked, Opinion
from penstock.chat import ChatRequest, silent
from penstock.errors import EngineError
from penstock.steps import Parts

WORDS = re.compile(r"[^\W_]+(?:['’.,-][^\W_]+)*")  # noqa: RUF001
SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|\n+")
FUNCTION_WORDS = frozenset(
    """a about after all also am an and any are as at be because been but by can could did do does for from had has
    have he her his how i if in into is it its may me more most my no not of on one or our she should so some such than
    that the their them then there these they this those to up was we were what when which who will with would you
    your""".split()
)
FEWEST_WORDS = 3
"""A sentence with fewer content words says nothing that could be supported."""

Support = Callable[[Sequence[str], Sequence[str]], Awaitable[Sequence[float]]]
"""Sentences and passages -> each sentence's support, from 0 to 1."""


class Grounding(Asking):
    """Whether an answer is supported by the passages in the request, or by further samples."""

    on: Literal["output"] = Field("output", description="there is no other way")
    passages: Literal["tool", "system", "last_user"] = Field("tool", description="which turns they stand in")
    least: float = Field(0.5, gt=0, le=1, description="the support that an answer needs")
    embeddings: str | None = Field(None, description="a served model that embeds [default: by the words themselves]")
    samples: int = Field(0, ge=0, le=16, description="instead of passages: so many further answers")
    model: str | None = Field(None, description="the served model that gives those")

    @model_validator(mode="after")
    def samples_have_a_model(self) -> "Grounding":
        if bool(self.samples) != bool(self.model):
            raise ValueError("`samples` and `model` go together")
        return self

    @property
    def target(self) -> str | None:
        return self.model or self.embeddings

    def look(self, parts: Parts) -> Look:
        support: Support = by_words
        if self.embeddings:
            support = by_embeddings(parts, self.embeddings)
        chat = parts.chat(self.model) if self.model else None

        async def look(looked: Looked) -> Opinion:
            if looked.request is None or looked.answer is None:
                return NOTHING
            said = sentences(looked.answer.message.text)
            if not said:
                return NOTHING
            if chat:
                replies = await asyncio.gather(
                    *(chat(again(looked.request, str(self.model)), silent) for _ in range(self.samples))
                )
                each = [await support(said, sentences(reply.message.text)) for reply in replies]
                scores = [sum(column) / len(column) for column in zip(*each, strict=True)]
            else:
                passages = [part for text in passages_of(looked.request, self.passages) for part in sentences(text)]
                if not passages:
                    return Opinion({"no_passages": 1.0})
                scores = list(await support(said, passages))
            score = sum(scores) / len(scores)
            return Opinion({"unsupported": 1 - score}) if score < self.least else NOTHING

        return look


def passages_of(request: ChatRequest, where: str) -> list[str]:
    role = {"tool": ("tool", "function"), "system": ("system", "developer"), "last_user": ("user",)}[where]
    found = [message.text for message in request.messages if message.role in role]
    return found[-1:] if where == "last_user" else found


def again(request: ChatRequest, model: str) -> ChatRequest:
    return request.but(model=model, temperature=1.0, n=None, seed=None, stream_options=None)


def sentences(text: str) -> list[str]:
    """Those that say something."""
    return [part for part in SENTENCE_ENDS.split(text) if len(content_words(part)) >= FEWEST_WORDS]


def content_words(text: str) -> list[str]:
    return [word for word in WORDS.findall(text.casefold()) if word not in FUNCTION_WORDS]


async def by_words(said: Sequence[str], passages: Sequence[str]) -> Sequence[float]:
    """Each sentence's share of content words that the next passage of up to three sentences has."""
    bags = [set(content_words(" ".join(passages[start : start + 3]))) for start in range(len(passages))]
    return [max((recall(content_words(sentence), bag) for bag in bags), default=0.0) for sentence in said]


def recall(words: Sequence[str], bag: set[str]) -> float:
    return sum(word in bag for word in words) / len(words)


def by_embeddings(parts: Parts, model: str) -> Support:
    """Each sentence's greatest cosine to a passage; below 0 is 0."""

    async def support(said: Sequence[str], passages: Sequence[str]) -> Sequence[float]:
        if not passages:
            return [0.0] * len(said)
        answer = await parts.ask(model, "/v1/embeddings", {"input": [*said, *passages]})
        vectors = [each["embedding"] for each in sorted(answer["data"], key=lambda each: each["index"])]
        if len(vectors) != len(said) + len(passages):
            raise EngineError(f"{model} has not embedded all that it was given")
        given = vectors[len(said) :]
        return [max(0.0, *(cosine(vector, other) for other in given)) for vector in vectors[: len(said)]]

    return support


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    norms = math.sqrt(sum(x * x for x in one) * sum(x * x for x in other))
    return sum(x * y for x, y in zip(one, other, strict=True)) / norms if norms else 0.0
