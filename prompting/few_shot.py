"""Few-shot: worked examples before the question (Brown et al. 2020, Language Models are Few-Shot Learners).

Similar ones are chosen as by Liu et al. 2022 (What Makes Good In-Context Examples for GPT-3?), the most similar last.
"""

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from penstock.chat import Chat, ChatRequest, Emit, Message, Reply, Usage
from penstock.errors import StartError
from penstock.steps import Around, Parts, Step
from prompting.asking import chats_only
from prompting.examples import Compare, Dense, Example, lexically, loaded
from prompting.instruct import opened, preceded

NAME = "few_shot"
SIMILAR = 4
QUERY_CHARACTERS = 8000
"""Of a longer question the end counts."""
MOST_EMBEDDED = 1000
"""Compared one by one, in the gateway."""


class Chosen(NamedTuple):
    examples: Sequence[Example]
    used: Usage = Usage()


Choose = Callable[[ChatRequest], Awaitable[Chosen]]


class FewShot(Step):
    """A fixed set keeps the beginning of every prompt the same, for the engine's prefix cache; similar ones do not."""

    operators: ClassVar[frozenset[str]] = frozenset({"examples", "model"})

    examples: str = Field(
        min_length=1,
        description="the file: YAML, or JSON lines (.jsonl), of {user, assistant} or {messages}",
    )
    choose: Literal["fixed", "similar"] = Field("fixed", description="the first ones, or those most like the question")
    k: int | None = Field(None, ge=1, description="how many [default: all where they are fixed, 4 where similar]")
    model: str | None = Field(
        None, description="a served model of embeddings that says what is similar [default: common words, BM25]"
    )
    form: Literal["turns", "text"] = Field("turns", description="as turns, or as text in the system turn")

    @model_validator(mode="after")
    def only_similar_ones_are_compared(self) -> Self:
        if self.model is not None and self.choose != "similar":
            raise ValueError("model is for choose: similar")
        return self

    def files(self, folder: Path) -> Sequence[Path]:
        return [folder / self.examples]

    def around(self, parts: Parts) -> Around:
        choose = self._chooser(loaded(parts.folder / self.examples), parts)

        def wrap(chat: Chat) -> Chat:
            async def shown(request: ChatRequest, emit: Emit) -> Reply:
                chats_only(request, NAME)
                examples, used = await choose(request)
                if self.form == "text":
                    turns = preceded(as_text(examples), request.messages)
                else:
                    turns = opened([turn for example in examples for turn in example.messages], request.messages)
                reply = await chat(request.with_messages(turns), emit)
                return replace(reply, usage=used.of(f"{NAME}.embedding") + reply.usage) if used != Usage() else reply

            return shown

        return wrap

    def _chooser(self, examples: Sequence[Example], parts: Parts) -> Choose:
        questions = [example.question for example in examples]
        compared = self._compared(questions, self.model, parts) if self.model else lexically(questions)

        async def fixed(request: ChatRequest) -> Chosen:
            return Chosen(examples[: self.k])

        async def similar(request: ChatRequest) -> Chosen:
            query = next((turn.text for turn in reversed(request.messages) if turn.role == "user"), "")
            scores, tokens = await compared(query[-QUERY_CHARACTERS:], getattr(request, "cache_salt", None))
            best = sorted(range(len(examples)), key=lambda index: -scores[index])[: self.k or SIMILAR]
            return Chosen([examples[index] for index in reversed(best)], Usage(tokens))

        return fixed if self.choose == "fixed" else similar

    def _compared(self, questions: Sequence[str], model: str, parts: Parts) -> Compare:
        if len(questions) > MOST_EMBEDDED:
            raise StartError(f"few_shot compares at most {MOST_EMBEDDED} examples by a model, not {len(questions)}")
        parts.chat(model)  # whether there is one
        return Dense(questions, model, parts).scores


def as_text(examples: Sequence[Example]) -> str:
    """For models that take examples for turns of this conversation."""
    said = ["\n".join(line for turn in example.messages for line in lines(turn)) for example in examples]
    return "\n\n".join(["These are examples of questions and good answers.", *said])


def lines(turn: Message) -> Iterator[str]:
    if turn.text:
        yield f"{turn.role.capitalize()}: {turn.text}"
    for call in turn.tool_calls or ():
        yield f"{turn.role.capitalize()} calls: {json.dumps(call.get('function'), ensure_ascii=False)}"
