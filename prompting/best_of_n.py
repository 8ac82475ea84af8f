"""Best of n: several samples, each graded, and the best of them (Stiennon et al. 2020, Learning to Summarize with Human
Feedback, by a reward model; Zheng et al. 2023, Judging LLM-as-a-Judge, section 3.1, by a model that grades alone)."""

import json
import logging
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from penstock.chat import Chat, ChatRequest, Choice, Emit, Reply, Usage
from penstock.errors import EngineError
from penstock.steps import Around, Parts, Step
from prompting.asking import NO_ROOM, ask, chats_only, not_begun, to_judge, together, turn
from prompting.samples import is_whole, sampled, told, without_logprobs

log = logging.getLogger(__name__)

NAME = "best_of_n"
LOWEST = -math.inf
"""Of what has got no grade."""
GRADE = re.compile(r"\W*Grade:\W*(10|[1-9])(?:\s*/\s*10)?\W*", re.IGNORECASE)


class Judge(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="the served model that grades")
    rubric: str = Field(
        "Grade the answer above: is it correct and complete, and does it do what was asked and nothing else? "
        "1 is useless, 5 has errors that matter, 8 has small flaws, 10 has none.",
        min_length=1,
        description="what deserves which grade from 1 to 10",
    )
    max_tokens: int = Field(512, ge=1, description="of what it writes about one sample")


class Reward(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="the served model that scores a conversation: one number, more is better")


class BestOfN(Step):
    """One of `judge` and `reward` is needed. Of equally good ones the first wins. Samples that were cut off compete
    only among themselves, where there are no others."""

    operators: ClassVar[frozenset[str]] = frozenset({"judge", "reward"})

    k: int = Field(4, ge=2, le=64, description="samples for each answer, all in one request")
    temperature: float | None = Field(
        0.8, ge=0, le=2, description="of the samples, in place of the request's; null: the request's own"
    )
    judge: Judge | None = Field(
        None, description="{model, rubric, max_tokens}: a served model that grades from 1 to 10"
    )
    reward: Reward | None = Field(None, description="{model}: a served reward model, asked at /classify")
    show: bool = Field(True, description="whether the reasoning tells the grades")

    @model_validator(mode="after")
    def one_grades(self) -> "BestOfN":
        if (self.judge is None) == (self.reward is None):
            raise ValueError("either judge: {model: NAME} or reward: {model: NAME}")
        return self

    def around(self, parts: Parts) -> Around:
        if self.reward:
            grade = scoring(self.reward, parts)
        else:
            assert self.judge
            grade = judging(self.judge, parts)

        def wrap(chat: Chat) -> Chat:
            async def best(request: ChatRequest, emit: Emit) -> Reply:
                chats_only(request, NAME)
                not_begun(request, NAME)
                without_logprobs(request, NAME)
                groups, used = await sampled(chat, request, self.k, self.temperature)
                graded = await together([contest(request, samples, grade) for samples in groups])
                choices = []
                for index, contestants in enumerate(graded):
                    first = max(contestants, key=lambda contestant: contestant.grade)
                    choices.append(await told(first.choice, index, said(contestants) if self.show else "", emit))
                usage = sum((each.usage for contestants in graded for each in contestants), used.of(NAME))
                return Reply.of(choices, usage)

            return best

        return wrap


class Graded(NamedTuple):
    choice: Choice
    grade: float
    usage: Usage


Grade = Callable[[ChatRequest, Choice], Awaitable[Graded]]


async def contest(request: ChatRequest, samples: Sequence[Choice], grade: Grade) -> list[Graded]:
    """Each answer that differs from those before it with its grade; a single one needs none."""
    whole = [sample for sample in samples if is_whole(sample)] or samples
    different: dict[str, Choice] = {}
    for sample in whole:
        different.setdefault(written(sample), sample)
    if len(different) == 1:
        return [Graded(whole[0], LOWEST, Usage())]
    return await together([grade_or_lowest(grade, request, sample) for sample in different.values()])


async def grade_or_lowest(grade: Grade, request: ChatRequest, sample: Choice) -> Graded:
    try:
        return await grade(request, sample)
    except NO_ROOM as error:
        log.warning("%s: a sample has got no grade and counts as the lowest: %s", NAME, error.message)
        return Graded(sample, LOWEST, Usage())


def judging(judge: Judge, parts: Parts) -> Grade:
    chat = parts.chat(judge.model)
    asked = turn("user", f"{judge.rubric}\n\n{JUDGE}")

    async def grade(request: ChatRequest, sample: Choice) -> Graded:
        turns = [turn("assistant", written(sample)), asked]
        fields = {"temperature": 0, "max_tokens": judge.max_tokens, "chat_template_kwargs": None}
        verdict = await ask(chat, to_judge(request, judge.model, turns, **fields), f"{NAME}.judge")
        lines = verdict.message.text.strip().splitlines()
        found = GRADE.fullmatch(lines[-1]) if lines else None
        if found is None:
            log.warning(
                "%s: an answer of the judge %r ends without a grade and counts as the lowest", NAME, judge.model
            )
        return Graded(sample, float(found[1]) if found else LOWEST, verdict.usage)

    return grade


def scoring(reward: Reward, parts: Parts) -> Grade:
    parts.chat(reward.model)  # whether there is one

    async def grade(request: ChatRequest, sample: Choice) -> Graded:
        turns = [*request.messages, turn("assistant", written(sample))]
        salt = getattr(request, "cache_salt", None)
        body: dict[str, Any] = {
            "messages": [each.model_dump(exclude_unset=True) for each in turns],
            "use_activation": False,  # the logit itself: a sigmoid of large ones is 1.0 for all
            **({"cache_salt": salt} if salt else {}),
        }
        answer = await parts.ask(reward.model, "/classify", body)
        used = Usage((answer.get("usage") or {}).get("prompt_tokens") or 0)
        return Graded(sample, score_of(answer, reward.model), used.of(f"{NAME}.reward"))

    return grade


def score_of(answer: Mapping[str, Any], model: str) -> float:
    """Raises EngineError for what is no single number: a classifier of several classes rewards nothing."""
    try:
        (score,) = answer["data"][0]["probs"]
        score = float(score)
    except (LookupError, TypeError, ValueError):
        raise EngineError(f"{model!r} is no reward model: /classify gives one number for each answer") from None
    return score if math.isfinite(score) else LOWEST


def written(sample: Choice) -> str:
    """As a turn that any chat template takes: calls of tools as JSON."""
    calls = [call.get("function") for call in sample.message.tool_calls or ()]
    return "\n".join(filter(None, [sample.message.text, json.dumps(calls, ensure_ascii=False) if calls else ""]))


def said(contestants: Sequence[Graded]) -> str:
    """`The best of 3 different answers, graded 9, 4, 7.`"""
    grades = [f"{each.grade:g}" if each.grade != LOWEST else "-" for each in contestants]
    if set(grades) == {"-"}:
        return ""
    return f"The best of {len(grades)} different answers, graded {', '.join(grades)}."


JUDGE = "Say in a sentence or two what is right and wrong with it. Then end with a line of the form Grade: N"
