"""Tree of thoughts: several ways to begin, the promising ones gone on with (Yao et al. 2023, arXiv 2305.10601): its
breadth-first search, states valued one by one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from pydantic import Field, model_validator

from penstock.chat import Chat, ChatRequest, Message, Reply, Usage
from penstock.steps import Around, Parts, Step
from prompting.aloud import Aloud, thought_through
from prompting.asking import aside, ask, to_judge, together, turn

MOST_CALLS = 64
BEGIN = "I will think step by step before I answer."
FIRST = "What could be the first step? Write one short step alone, and do not answer yet."
NEXT = "Go on from there: what could be the next step? Write one short step alone, and do not answer yet."
VALUE = "Does this lead to a right answer? Grade it from 1 (surely not) to 10 (surely). End with the grade alone."
ANSWER = "Now answer my question by these steps, in the form I asked for."
NUMBER = re.compile(r"(?<![\d.,-])\d+(?:\.\d+)?")
OF_TEN = re.compile(NUMBER.pattern + r"(?=\s*(?:/|out of)\s*10\b)")


@dataclass(frozen=True, slots=True)
class Branch:
    """A way through the tree: turns after the request's own, and the grade of the last step, 0 for none that can be
    read."""

    turns: Sequence[Message] = ()
    grade: float = 0


class TreeOfThoughts(Step):
    """At each of `depth` levels every branch that is kept gets `candidates` next steps, in one call with n of them;
    each different one is graded, and the `breadth` best are kept. Then the answer from the best branch streams.

    At most (1 + candidates) * (1 + (depth - 1) * breadth) + 1 calls, which may not be more than 64, for each choice
    that is asked for. Calls of a level run side by side. Tools and formats are for the answer itself.
    """

    operators = frozenset({"judge"})

    breadth: int = Field(2, ge=1, description="how many branches are gone on with")
    depth: int = Field(2, ge=1, description="how many steps a branch has")
    candidates: int = Field(3, ge=1, description="how many next steps each branch gets")
    judge: str | None = Field(None, description="the served model that grades [default: the one that answers]")
    temperature: float = Field(0.8, ge=0, le=2, description="at which steps are written; at 0 all are the same")
    first: str = Field(FIRST, min_length=1, description="how a first step is asked for")
    next: str = Field(NEXT, min_length=1, description="how a further one is")
    value: str = Field(VALUE, min_length=1, description="how a grade from 1 to 10 is")
    answer: str = Field(ANSWER, min_length=1, description="how the answer is")
    max_tokens: int = Field(256, ge=1, description="of a step, and of a grade with its reasons")
    show: bool = Field(True, description="whether steps and grades stream as reasoning")

    @model_validator(mode="after")
    def is_bounded(self) -> Self:
        if self.most_calls > MOST_CALLS:
            raise ValueError(
                f"breadth {self.breadth}, depth {self.depth} and candidates {self.candidates} may take "
                f"{self.most_calls} calls for an answer, of at most {MOST_CALLS}: lower one of them"
            )
        return self

    @property
    def most_calls(self) -> int:
        return (1 + self.candidates) * (1 + (self.depth - 1) * self.breadth) + 1

    def around(self, parts: Parts) -> Around:
        judge = parts.chat(self.judge) if self.judge else None

        def wrap(chat: Chat) -> Chat:
            async def once(request: ChatRequest, aloud: Aloud) -> Reply:
                return await self._answer(chat, judge or chat, request, aloud)

            return thought_through("tree_of_thoughts", self.show, once)

        return wrap

    async def _answer(self, chat: Chat, judge: Chat, request: ChatRequest, aloud: Aloud) -> Reply:
        # An answer between two questions: many chat templates take no two turns of one side in a row.
        level, used = await self._level(chat, judge, request, [Branch([turn("assistant", BEGIN)])], self.first)
        await shown(level, aloud)
        for _ in range(self.depth - 1):
            level, more = await self._level(chat, judge, request, level, self.next)
            await shown(level, aloud)
            used += more
        turns = [*request.messages, *level[0].turns, turn("user", self.answer)]
        reply = await chat(request.with_messages(turns), aloud.answer)
        return aloud.whole(replace(reply, usage=used + reply.usage))

    async def _level(
        self, chat: Chat, judge: Chat, request: ChatRequest, level: Sequence[Branch], question: str
    ) -> tuple[list[Branch], Usage]:
        """The best branches of those that go on from `level`, the best first, and what they cost."""
        asked = [[*branch.turns, turn("user", question)] for branch in level]
        grown = await together([self._grow(chat, request, turns) for turns in asked])
        ends = [turns for more, _ in grown for turns in more]
        graded = await together([self._grade(judge, request, turns) for turns in ends])
        branches = sorted((branch for branch, _ in graded), key=lambda branch: branch.grade, reverse=True)
        return branches[: self.breadth], sum((usage for _, usage in [*grown, *graded]), Usage())

    async def _grow(
        self, chat: Chat, request: ChatRequest, turns: Sequence[Message]
    ) -> tuple[list[list[Message]], Usage]:
        """The turns with each different next step."""
        count = {"n": self.candidates} if self.candidates > 1 else {}
        asked = aside(request, turns, temperature=self.temperature, max_tokens=self.max_tokens, **count)
        reply = await ask(chat, asked, "tree_of_thoughts.step")
        steps = dict.fromkeys(choice.message.text.strip() for choice in reply.choices)
        return [[*turns, turn("assistant", step)] for step in steps if step or len(steps) == 1], reply.usage

    async def _grade(self, judge: Chat, request: ChatRequest, turns: Sequence[Message]) -> tuple[Branch, Usage]:
        asked = [*turns, turn("user", self.value)]
        if self.judge:
            call = to_judge(request, self.judge, asked, max_tokens=self.max_tokens)
        else:
            call = aside(request, asked, max_tokens=self.max_tokens)
        reply = await ask(judge, call, "tree_of_thoughts.grade")
        is_cut = reply.finish_reason == "length"  # then its last number is no grade
        return Branch(turns, 0 if is_cut else grade_in(reply.message.text)), reply.usage


async def shown(level: Sequence[Branch], aloud: Aloud) -> None:
    for branch in level:
        await aloud.tell(f"({branch.grade:g}/10) {branch.turns[-1].text}")


def grade_in(text: str) -> float:
    """`From 1 to 10 I give it 7.` -> 7, `7/10` -> 7: the grade, or the last number; 0 where that is none of 1 to 10."""
    found = OF_TEN.findall(text) or NUMBER.findall(text)
    grade = float(found[-1]) if found else 0
    return grade if 1 <= grade <= 10 else 0
