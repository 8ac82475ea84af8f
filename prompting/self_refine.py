"""Self-refine: an answer, what is wrong with it, a better answer (Madaan et al. 2023, arXiv 2303.17651)."""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from penstock.chat import Chat, ChatRequest, Message, Reply, Usage
from penstock.steps import Around, Parts, Step
from prompting.aloud import Aloud, thought_through
from prompting.asking import NO_ROOM, aside, is_settled, to_judge, turn

CRITIQUE = "Criticize the answer above: what in it is wrong, missing or unclear? Do not write another yet."
STOP = "If nothing is left to mend, write only: {}"
REVISE = "Now answer again, with all of that mended. Write the answer alone."


class SelfRefine(Step):
    """Draft, critique, revision, as often as `rounds` says, in one conversation that grows, as in the paper.

    1 + 2 * rounds calls at most. A draft that calls a tool or was blocked is the answer as it is; so is the last
    one when the critique has nothing to mend, or when the tokens or the context of another call are not there.
    """

    operators = frozenset({"judge"})

    rounds: int = Field(1, ge=1, le=8, description="how often the answer is criticized and written again")
    stop_when: str | None = Field(
        None, min_length=1, description="words in a critique by which nothing is left to mend; it is told to use them"
    )
    judge: str | None = Field(None, description="the served model that criticizes [default: the one that answers]")
    critique: str = Field(CRITIQUE, min_length=1, description="how a critique is asked for")
    revise: str = Field(REVISE, min_length=1, description="how the next answer is asked for")
    max_tokens: int = Field(1024, ge=1, description="of a critique")
    show: bool = Field(True, description="whether drafts and critiques stream as reasoning")

    def around(self, parts: Parts) -> Around:
        judge = parts.chat(self.judge) if self.judge else None

        def wrap(chat: Chat) -> Chat:
            async def once(request: ChatRequest, aloud: Aloud) -> Reply:
                return await self._refine(chat, judge or chat, request, aloud)

            return thought_through("self_refine", self.show, once)

        return wrap

    async def _refine(self, chat: Chat, critic: Chat, request: ChatRequest, aloud: Aloud) -> Reply:
        used = Usage()
        turns: list[Message] = []
        draft = await chat(request, aloud.thinking())
        for round_ in range(self.rounds):
            if is_settled(draft):
                break
            is_last = round_ + 1 == self.rounds
            turns.append(turn("assistant", draft.message.text))
            try:
                critique = await aloud.ask(critic, self._criticism(request, turns), "self_refine.critique")
                used += critique.usage
                if self._is_content(critique):
                    break
                turns += [self._asked_for(), turn("assistant", critique.message.text), turn("user", self.revise)]
                longer = request.with_messages([*request.messages, *turns])
                revision = await chat(longer, aloud.answer if is_last else aloud.thinking())
            except NO_ROOM as error:
                if aloud.begun:
                    raise
                await aloud.tell(error.message)
                break
            if is_last:
                return aloud.whole(replace(revision, usage=used + draft.usage.of("self_refine.draft") + revision.usage))
            used += draft.usage.of("self_refine.draft")
            draft = revision
        return await aloud.give(replace(draft, usage=used + draft.usage))

    def _criticism(self, request: ChatRequest, turns: Sequence[Message]) -> ChatRequest:
        asked = [*turns, self._asked_for()]
        if self.judge:
            return to_judge(request, self.judge, asked, max_tokens=self.max_tokens)
        return aside(request, asked, max_tokens=self.max_tokens)

    def _asked_for(self) -> Message:
        stop = " " + STOP.format(self.stop_when) if self.stop_when else ""
        return turn("user", self.critique + stop)

    def _is_content(self, critique: Reply) -> bool:
        if is_settled(critique):  # blocked: there is nothing to go by
            return True
        return self.stop_when is not None and self.stop_when.casefold() in critique.message.text.casefold()
