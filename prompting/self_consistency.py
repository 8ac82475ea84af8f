"""Self-consistency: several samples, and the answer that most of them come to (Wang et al. 2022, Self-Consistency
Improves Chain of Thought Reasoning in Language Models)."""

import re
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from pydantic import Field, field_validator

from penstock.chat import Chat, ChatRequest, Choice, Emit, Reply
from penstock.steps import Around, Parts, Step
from prompting.readings import Form, Reading
from prompting.samples import is_whole, sampled, told, without_logprobs

NAME = "self_consistency"


class SelfConsistency(Step):
    """The vote is on the answer read from each sample, or on the tools that it calls with their arguments. Of equally
    many the one that came first wins; its first sample is the reply, streamed after the vote."""

    operators: ClassVar[frozenset[str]] = frozenset({"regex"})

    k: int = Field(5, ge=2, le=64, description="samples for each answer, all in one request")
    temperature: float | None = Field(
        0.7, ge=0, le=2, description="of the samples, in place of the request's; null: the request's own"
    )
    marker: str | None = Field("Answer:", min_length=1, description="the answer is what follows its last one, if any")
    regex: str | None = Field(
        None, description="the answer is the last match, or its first group; it must not backtrack without end"
    )
    form: Form = Field(
        "text",
        description="what answers are: text, the last number, or JSON (as soon as the request asks for JSON)",
    )
    show: bool = Field(True, description="whether the reasoning tells how many samples agree")

    @field_validator("regex")
    @classmethod
    def regex_is_one(cls, regex: str | None) -> str | None:
        try:
            re.compile(regex or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return regex

    def around(self, parts: Parts) -> Around:
        pattern = re.compile(self.regex) if self.regex else None
        reading = Reading(self.marker, pattern, self.form)
        of_json = Reading(form="json")

        def wrap(chat: Chat) -> Chat:
            async def consistent(request: ChatRequest, emit: Emit) -> Reply:
                without_logprobs(request, NAME)
                groups, usage = await sampled(chat, request, self.k, self.temperature)
                choices = []
                for index, samples in enumerate(groups):
                    vote = elected(samples, of_json if asks_for_json(request) else reading)
                    note = f"{vote.agreeing} of {self.k} samples agree." if self.show else ""
                    choices.append(await told(vote.choice, index, note, emit))
                return Reply.of(choices, usage.of(NAME))

            return consistent

        return wrap


class Vote(NamedTuple):
    choice: Choice
    agreeing: int


def elected(samples: Sequence[Choice], reading: Reading) -> Vote:
    """Samples that were cut off, and those without an answer, have a vote only where there are no others."""
    all_ = [(reading.answer(sample.message), sample) for sample in samples]
    whole = [(answer, sample) for answer, sample in all_ if is_whole(sample)]
    answers = [(answer, sample) for answer, sample in whole if answer is not None]
    votes: dict[str | None, list[Choice]] = {}
    for answer, sample in answers or whole or all_:
        votes.setdefault(answer, []).append(sample)
    most = max(votes.values(), key=len)
    return Vote(most[0], len(most))


def asks_for_json(request: ChatRequest) -> bool:
    wire: dict[str, Any] = request.to_wire()
    kind = (wire.get("response_format") or {}).get("type")
    structured = wire.get("structured_outputs") or {}
    return kind in ("json_object", "json_schema") or bool(structured.get("json") or structured.get("json_object"))
