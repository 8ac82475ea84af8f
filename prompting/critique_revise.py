"""Critique and revise by written principles: the supervised half of Constitutional AI (Bai et al. 2022, arXiv
2212.08073, section 3.1), here while an answer is made; training makes its pairs of drafts and revisions by the same
`revised`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from penstock.chat import Chat, ChatRequest, Reply, Usage, silent
from penstock.errors import StartError
from penstock.steps import Around, Parts, Step
from prompting.aloud import Aloud, thought_through
from prompting.asking import NO_ROOM, aside, is_settled, turn
from prompting.principles import Principle, drawn, load, own


@dataclass(frozen=True, slots=True)
class Revision:
    """An answer before and after one principle."""

    principle: Principle
    draft: Reply
    critique: Reply
    revision: Reply


@dataclass(frozen=True, slots=True)
class Trace:
    """`reply`: the answer, with the usage of all calls. `revisions` may be fewer than the principles: a draft that
    calls a tool or was blocked is left as it is."""

    reply: Reply
    revisions: Sequence[Revision] = field(default=())


class CritiqueRevise(Step):
    """A draft, then for each principle a critique of what there is and a revision, which takes its place.

    1 + 2 * per_request calls at most. What is there is the answer when it calls a tool or was blocked, or when the
    tokens or the context of another call are not there.
    """

    operators = frozenset({"principles"})

    principles: str | None = Field(
        None, description="a YAML file of `principles`, each with id, critique, revision [default: eight of our own]"
    )
    per_request: int = Field(1, ge=1, le=16, description="how many of them an answer is held to")
    choose: Literal["first", "drawn"] = Field("first", description="the first of the file, or drawn for each question")
    seed: int = Field(0, description="of the draw: the same question gets the same principles")
    max_tokens: int = Field(1024, ge=1, description="of a critique")
    show: bool = Field(True, description="whether drafts and critiques stream as reasoning")

    def files(self, folder: Path) -> Sequence[Path]:
        return [folder / self.principles] if self.principles else []

    def around(self, parts: Parts) -> Around:
        principles = load(parts.folder / self.principles) if self.principles else own()
        if self.per_request > len(principles):
            raise StartError(
                f"critique_revise: per_request is {self.per_request}, of {len(principles)} principles that there are"
            )

        def wrap(chat: Chat) -> Chat:
            async def once(request: ChatRequest, aloud: Aloud) -> Reply:
                chosen = self._chosen(principles, request)
                return (await revised(chat, request, chosen, aloud, max_tokens=self.max_tokens)).reply

            return thought_through("critique_revise", self.show, once)

        return wrap

    def _chosen(self, principles: Sequence[Principle], request: ChatRequest) -> Sequence[Principle]:
        if self.choose == "first":
            return principles[: self.per_request]
        asked = request.messages[-1].text if request.messages else ""
        return drawn(principles, self.per_request, f"{self.seed} {asked}")


async def revised(
    chat: Chat,
    request: ChatRequest,
    principles: Sequence[Principle],
    aloud: Aloud | None = None,
    *,
    max_tokens: int = 1024,
) -> Trace:
    """The loop itself. `request`: for one choice; `aloud`: where it streams to; `max_tokens`: of a critique."""
    aloud = aloud or Aloud(silent, show=False)
    used = Usage()
    revisions: list[Revision] = []
    draft = await chat(request, aloud.thinking() if principles else aloud.answer)
    if not principles:
        return Trace(aloud.whole(draft))
    for index, principle in enumerate(principles, 1):
        if is_settled(draft):
            break
        is_last = index == len(principles)
        turns = [turn("assistant", draft.message.text), turn("user", principle.critique)]
        try:
            asked = aside(request, turns, max_tokens=max_tokens)
            critique = await aloud.ask(chat, asked, "critique_revise.critique")
            used += critique.usage
            if is_settled(critique):  # blocked: there is nothing to go by
                continue
            turns += [turn("assistant", critique.message.text), turn("user", principle.revision)]
            longer = request.with_messages([*request.messages, *turns])
            revision = await chat(longer, aloud.answer if is_last else aloud.thinking())
        except NO_ROOM as error:
            if aloud.begun:
                raise
            await aloud.tell(error.message)
            break
        used += draft.usage.of("critique_revise.draft")
        revisions.append(Revision(principle, draft, critique, revision))
        draft = revision
        if is_last:
            return Trace(aloud.whole(replace(draft, usage=used + draft.usage)), revisions)
    return Trace(await aloud.give(replace(draft, usage=used + draft.usage)), revisions)
