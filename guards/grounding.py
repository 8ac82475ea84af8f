"""How much of an answer the passages support that it was to be made from: a support score, no proof of truth.

Of each sentence of the answer, the share of its content words that the passage next to it has (recall, as in ROUGE-1,
Lin 2004), or the nearness of their embeddings, or what a model of inference says (`entailment.py`). The answer's score
is the mean over its sentences. By words and embeddings a sentence that says the opposite in the same words has a high
one; a model of inference sees that, and one contradicted sentence is enough.

Without passages, samples: further answers of the same model to the same request stand in for them (SelfCheckGPT,
Manakul et al., 2023, arXiv:2303.08896; by inference, much as its NLI variant). What a model makes up, it makes up
differently each time.
"""

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from guards.entailment import CONTRADICTION, ENTAILMENT, Inference, Weight
from guards.guard import NOTHING, Asking, Look, Looked, Opinion, aside
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

FEWEST_TO_INFER = 2
"""The same for a model of inference, which knows more than words."""
NEAREST = 8
"""How many passages a model of inference is given for a sentence: those that have most of its words."""
PASSAGE_SENTENCES = 3

Support = Callable[[Sequence[str], Sequence[str]], Awaitable[Sequence[Weight]]]
"""Sentences of an answer, and texts -> each sentence's support by them."""


class Grounding(Asking):
    """Whether an answer is supported by the passages in the request, or by further samples."""

    on: Literal["output"] = Field("output", description="there is no other way")
    passages: Literal["tool", "system", "last_user"] = Field("tool", description="which turns they stand in")
    least: float = Field(0.5, gt=0, le=1, description="the support that an answer needs")
    embeddings: str | None = Field(None, description="a served model that embeds [default: by the words themselves]")
    nli: str | None = Field(None, description="instead of them: a served model of natural language inference")
    labels: tuple[str, ...] = Field(
        (ENTAILMENT, "neutral", CONTRADICTION), description="what its classes mean, in the model's own order"
    )
    contradiction: float = Field(
        0.5, gt=0, le=1, description="how sure it must be that a sentence is contradicted, for the answer to be so"
    )
    samples: int = Field(0, ge=0, le=16, description="instead of passages: so many further answers")
    model: str | None = Field(None, description="the served model that gives those")

    @model_validator(mode="after")
    def samples_have_a_model(self) -> "Grounding":
        if bool(self.samples) != bool(self.model):
            raise ValueError("`samples` and `model` go together")
        return self

    @model_validator(mode="after")
    def one_way_to_weigh(self) -> "Grounding":
        if self.embeddings and self.nli:
            raise ValueError("one of `embeddings` and `nli`, not both")
        return self

    @field_validator("labels")
    @classmethod
    def labels_say_what_is_entailed(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        labels = tuple(label.casefold() for label in labels)
        if ENTAILMENT not in labels or len(set(labels)) < len(labels):
            raise ValueError(f"each class has a name of its own, and one is `{ENTAILMENT}`")
        return labels

    @property
    def target(self) -> str | None:
        return self.model or self.nli or self.embeddings

    def look(self, parts: Parts) -> Look:
        for model in filter(None, (self.embeddings, self.nli)):
            parts.chat(model)  # whether there is one
        support = self._support(parts)
        fewest, of_passages = (FEWEST_TO_INFER, 0) if self.nli else (FEWEST_WORDS, FEWEST_WORDS)
        chat = parts.chat(self.model) if self.model else None

        async def look(looked: Looked) -> Opinion:
            if looked.request is None or looked.answer is None:
                return NOTHING
            said = sentences(looked.answer.message.text, fewest)
            if not said:
                return NOTHING
            if chat:
                replies = await asyncio.gather(
                    *(chat(again(looked.request, str(self.model)), silent) for _ in range(self.samples))
                )
                each = [await support(said, [reply.message.text]) for reply in replies]
                return self._opinion([mean(column) for column in zip(*each, strict=True)])
            passages = passages_of(looked.request, self.passages)
            if not any(sentences(text, of_passages) for text in passages):
                return Opinion({"no_passages": 1.0})
            return self._opinion(await support(said, passages))

        return look

    def _support(self, parts: Parts) -> Support:
        if self.nli:
            return by_inference(Inference(parts, self.nli, self.labels, sure="labels" in self.model_fields_set))
        return by_embeddings(parts, self.embeddings) if self.embeddings else by_words

    def _opinion(self, weighed: Sequence[Weight]) -> Opinion:
        score = mean(weighed).support
        contradicted = max((each.contradiction for each in weighed if each.contradiction > each.support), default=0.0)
        kinds = {"unsupported": 1 - score} if score < self.least else {}
        if contradicted >= self.contradiction:
            kinds["contradicted"] = contradicted
        return Opinion(kinds) if kinds else NOTHING


def mean(weighed: Sequence[Weight]) -> Weight:
    support, contradiction = (sum(column) / len(weighed) for column in zip(*weighed, strict=True))
    return Weight(support, contradiction)


def passages_of(request: ChatRequest, where: str) -> list[str]:
    role = {"tool": ("tool", "function"), "system": ("system", "developer"), "last_user": ("user",)}[where]
    found = [message.text for message in request.messages if message.role in role]
    return found[-1:] if where == "last_user" else found


def again(request: ChatRequest, model: str) -> ChatRequest:
    return request.but(model=model, temperature=1.0, n=None, seed=None, stream_options=None)


def sentences(text: str, fewest: int = FEWEST_WORDS) -> list[str]:
    """Those that say something."""
    return [part for part in SENTENCE_ENDS.split(text) if part.strip() and len(content_words(part)) >= fewest]


def content_words(text: str) -> list[str]:
    return [word for word in WORDS.findall(text.casefold()) if word not in FUNCTION_WORDS]


async def by_words(said: Sequence[str], texts: Sequence[str]) -> Sequence[Weight]:
    """Each sentence's share of content words that the next passage of up to three sentences has."""

    def weigh() -> list[Weight]:
        bags = [set(content_words(passage)) for passage in windows(all_sentences(texts))]
        words = [content_words(sentence) for sentence in said]
        return [Weight(max((recall(own, bag) for bag in bags), default=0.0)) for own in words]

    return await aside(sum(map(len, texts)), weigh)


def all_sentences(texts: Sequence[str]) -> list[str]:
    return [sentence for text in texts for sentence in sentences(text)]


def windows(said: Sequence[str]) -> list[str]:
    return [" ".join(said[start : start + PASSAGE_SENTENCES]) for start in range(len(said))]


def recall(words: Sequence[str], bag: set[str]) -> float:
    return sum(word in bag for word in words) / len(words)


def by_inference(inference: Inference) -> Support:
    """Beside the passages of up to three sentences, of one text each, that have most of a sentence's words."""

    async def support(said: Sequence[str], texts: Sequence[str]) -> Sequence[Weight]:
        passages = await aside(sum(map(len, texts)), lambda: nearest(said, texts))
        return await inference.weigh(said, passages)

    return support


def nearest(said: Sequence[str], texts: Sequence[str]) -> list[list[str]]:
    """For each sentence, the first of these first."""
    passages = list(dict.fromkeys(passage for text in texts for passage in windows(sentences(text, 0))))
    bags = [set(content_words(passage)) for passage in passages]

    def of(sentence: str) -> list[str]:
        words = content_words(sentence)
        shares = [recall(words, bag) for bag in bags]
        by_share = sorted(range(len(passages)), key=lambda number: -shares[number])
        return [passages[number] for number in by_share[:NEAREST]]

    return [of(sentence) for sentence in said]


def by_embeddings(parts: Parts, model: str) -> Support:
    """Each sentence's greatest cosine to a sentence of the passages; below 0 is 0."""

    async def support(said: Sequence[str], texts: Sequence[str]) -> Sequence[Weight]:
        passages = all_sentences(texts)
        if not passages:
            return [Weight(0.0)] * len(said)
        answer = await parts.ask(model, "/v1/embeddings", {"input": [*said, *passages]})
        vectors = [each["embedding"] for each in sorted(answer["data"], key=lambda each: each["index"])]
        if len(vectors) != len(said) + len(passages):
            raise EngineError(f"{model} has not embedded all that it was given")
        given = vectors[len(said) :]
        return [Weight(max(0.0, *(cosine(vector, other) for other in given))) for vector in vectors[: len(said)]]

    return support


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    norms = math.sqrt(sum(x * x for x in one) * sum(x * x for x in other))
    return sum(x * y for x, y in zip(one, other, strict=True)) / norms if norms else 0.0
