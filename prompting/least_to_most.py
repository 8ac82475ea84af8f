"""Least-to-most: simpler questions first, each with the answers before it (Zhou et al. 2022, arXiv 2205.10625)."""

import re
from dataclasses import replace

from pydantic import Field

from penstock.chat import Chat, ChatRequest, Reply, Usage
from penstock.steps import Around, Parts, Step
from prompting.aloud import Aloud, thought_through
from prompting.asking import aside, turn

BEGIN = "I will settle simpler questions first."
SPLIT = (
    "Which simpler questions have to be answered before mine, the simplest first? "
    "Write at most {count}, one a line, and answer none of them."
)
ANSWER = "Now answer my question itself, in the form I asked for."
LISTED = re.compile(r"^[ \t]*(?:\d{1,2}[.):]|[-*\u2022])[ \t]+(\S.*)$", re.MULTILINE)
ASKED = re.compile(r"^[ \t]*(\S.*\?)[ \t]*$", re.MULTILINE)


class LeastToMost(Step):
    """The question is split into simpler ones, these are answered one after the other in one conversation that grows,
    then the question itself is, which streams.

    2 + questions calls at most; where no simpler questions are named, one call and then the request as it came. Tools
    and formats are for the answer itself.
    """

    questions: int = Field(4, ge=1, le=16, description="how many simpler questions there may be")
    split: str = Field(SPLIT, min_length=1, description="how they are asked for; {count} is how many there may be")
    answer: str = Field(ANSWER, min_length=1, description="how the answer to the question itself is asked for")
    max_tokens: int = Field(512, ge=1, description="of the list, and of the answer to each simpler question")
    show: bool = Field(True, description="whether the simpler questions and their answers stream as reasoning")

    def around(self, parts: Parts) -> Around:
        def wrap(chat: Chat) -> Chat:
            async def once(request: ChatRequest, aloud: Aloud) -> Reply:
                return await self._answer(chat, request, aloud)

            return thought_through("least_to_most", self.show, once)

        return wrap

    async def _answer(self, chat: Chat, request: ChatRequest, aloud: Aloud) -> Reply:
        # An answer between two questions: many chat templates take no two turns of one side in a row.
        turns = [turn("assistant", BEGIN), turn("user", self.split.replace("{count}", str(self.questions)))]
        listed = await aloud.ask(chat, aside(request, turns, max_tokens=self.max_tokens), "least_to_most.questions")
        used: Usage = listed.usage
        questions = questions_in(listed.message.text)[: self.questions]
        if questions:
            turns.append(turn("assistant", listed.message.text))
        for question in questions:
            await aloud.tell(question)
            turns.append(turn("user", question))
            settled = await aloud.ask(chat, aside(request, turns, max_tokens=self.max_tokens), "least_to_most.question")
            used += settled.usage
            turns.append(turn("assistant", settled.message.text))
        if questions:
            request = request.with_messages([*request.messages, *turns, turn("user", self.answer)])
        reply = await chat(request, aloud.answer)
        return aloud.whole(replace(reply, usage=used + reply.usage))


def questions_in(text: str) -> list[str]:
    """`First:\\n1. How many?\\n2) Since when?` -> [`How many?`, `Since when?`]: the items of a list, without one the
    lines that end with a question mark; each once."""
    found = LISTED.findall(text) or ASKED.findall(text)
    return list(dict.fromkeys(question.strip() for question in found))
