"""Chain of thought: the model thinks before it answers (Wei et al. 2022, Chain-of-Thought Prompting; without examples
Kojima et al. 2022, Large Language Models are Zero-Shot Reasoners).

One call, cut at a marker. Two calls where the request binds its answer (a schema, a limit, stops, a forced tool), since
what binds the answer must not bind the thoughts; and where the marker does not come, as in Kojima et al., section 3.1.
"""

from collections import defaultdict
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from penstock.chat import Chat, ChatRequest, Choice, Delta, Emit, Reply, Usage
from penstock.steps import Around, Parts, Step
from prompting.asking import (
    CONSTRAINTS,
    NO_ROOM,
    OF_THE_ANSWER,
    aside,
    ask,
    chats_only,
    into,
    not_begun,
    reasoning_of,
    together,
    turn,
)
from prompting.instruct import preceded
from prompting.split import Split, saying

NAME = "chain_of_thought"
BINDING = frozenset({*CONSTRAINTS, *OF_THE_ANSWER}).difference(
    ("tools", "tool_choice", "parallel_tool_calls", "n", "stream_options", "prediction", "add_generation_prompt")
)


class ChainOfThought(Step):
    """Reasoning goes out as reasoning, the answer as content."""

    operators: ClassVar[frozenset[str]] = frozenset({"marker"})  # which cuts what guards then look at apart

    instruction: str = Field(
        "Think step by step. Then write {marker} and after it the final answer alone.",
        min_length=1,
        description="what the model is told before the conversation; {marker} stands for the marker",
    )
    marker: str = Field("Answer:", min_length=1, max_length=100, description="parts the reasoning from the answer")
    answer: str = Field(
        "Now give the final answer alone.",
        min_length=1,
        description="asks for the answer where that is a call of its own",
    )
    unmarked: Literal["ask", "answer"] = Field(
        "ask", description="without the marker: ask for the answer in a second call, or take everything as the answer"
    )
    max_tokens: int | None = Field(1024, ge=1, description="of the reasoning, where that is a call of its own")
    show: bool = Field(True, description="whether the reasoning is told")

    def around(self, parts: Parts) -> Around:
        told = self.instruction.replace("{marker}", self.marker)

        def wrap(chat: Chat) -> Chat:
            async def thinking(request: ChatRequest, emit: Emit) -> Reply:
                chats_only(request, NAME)
                not_begun(request, NAME)
                asked = request.with_messages(preceded(told, request.messages))
                return await (self._apart if is_bound(request) else self._at_once)(chat, asked, emit)

            return thinking

        return wrap

    async def _at_once(self, chat: Chat, asked: ChatRequest, emit: Emit) -> Reply:
        splits: dict[int, Split] = defaultdict(lambda: Split(self.marker))

        async def cut(delta: Delta) -> None:
            await self._tell(splits[delta.choice].take(delta), emit)

        first = await chat(asked, cut)

        async def finished(index: int, choice: Choice) -> Reply:
            there = into(emit, index)
            await self._tell(splits[index].rest(), there)
            parted, found = self._parted(choice)
            if found or choice.message.tool_calls:
                return Reply.of([parted])
            said = choice.message.text
            if self.unmarked == "ask" and choice.finish_reason == "stop" and said.strip():
                answer = await self._answered(chat, asked, said, there)
                if answer is not None:
                    return self._after(said, answer)
            await self._tell(Delta(content=said), there)
            return Reply.of([self._thought(choice, said, said)])

        rest = await together([finished(index, choice) for index, choice in enumerate(first.choices)])
        used = sum((reply.usage for reply in rest), Usage())
        usage = first.usage.of(NAME) + used if used != Usage() else first.usage
        return Reply.of([reply.choices[0] for reply in rest], usage)

    async def _apart(self, chat: Chat, asked: ChatRequest, emit: Emit) -> Reply:
        """The thoughts of all choices in one call, then each choice's answer."""
        count = getattr(asked, "n", None)
        free = aside(asked, [], n=count, max_tokens=self.max_tokens, stop=[self.marker])
        thoughts = await ask(chat, free, NAME, emit if self.show else None)

        async def finished(index: int, choice: Choice) -> Reply:
            thought = reasoning_of(choice.message) + choice.message.text
            said = choice.message.text or thought
            answer = await self._answered(chat, asked, said, into(emit, index))
            if answer is None:  # as of a model whose own reasoning has taken all tokens
                return Reply.of([replace(self._thought(choice, "", thought), finish_reason="length")])
            return self._after(thought, answer)

        rest = await together([finished(index, choice) for index, choice in enumerate(thoughts.choices)])
        used = sum((reply.usage for reply in rest), Usage())
        return Reply.of([reply.choices[0] for reply in rest], thoughts.usage + used)

    async def _answered(self, chat: Chat, asked: ChatRequest, thought: str, emit: Emit) -> Reply | None:
        """The answer alone, after these thoughts, bound by all that the request binds its answer with; None where no
        tokens are left for it."""
        turns = [turn("assistant", thought), turn("user", self.answer)]
        call = asked.with_messages([*asked.messages, *(turns if thought.strip() else ())]).but(n=None)
        exact = bool(getattr(asked, "logprobs", None))  # every token is told, a marker's too
        split = Split(self.marker, answering=True)
        begun = False

        async def bare(delta: Delta) -> None:
            nonlocal begun
            begun = True
            await self._tell(delta if exact else split.take(delta), emit)

        try:
            reply = await chat(call, bare)
        except NO_ROOM:
            if begun:
                raise
            return None
        await self._tell(split.rest(), emit)
        return reply if exact else Reply.of([self._parted(reply.choices[0], answering=True)[0]], reply.usage)

    def _after(self, thought: str, reply: Reply) -> Reply:
        """`reply` with what was thought before it."""
        (choice,) = reply.choices
        whole = self._thought(choice, choice.message.text, thought + reasoning_of(choice.message))
        return Reply.of([whole], reply.usage)

    def _parted(self, choice: Choice, *, answering: bool = False) -> tuple[Choice, bool]:
        """The choice cut as its stream is; and whether there is an answer in it."""
        split = Split(self.marker, answering=answering)
        whole = [Delta(reasoning=reasoning_of(choice.message)), Delta(content=choice.message.text)]
        pieces = [*map(split.take, whole), split.rest()]
        reasoning = "".join(piece.reasoning for piece in pieces)
        return self._thought(choice, "".join(piece.content for piece in pieces), reasoning), split.found

    def _thought(self, choice: Choice, content: str, reasoning: str) -> Choice:
        return replace(choice, message=saying(choice.message, content, reasoning if self.show else ""))

    async def _tell(self, delta: Delta, emit: Emit) -> None:
        if delta.reasoning and not self.show:
            delta = replace(delta, reasoning="")
        if delta.content or delta.reasoning or delta.tool_calls:
            await emit(delta)


def is_bound(request: ChatRequest) -> bool:
    """Whether it binds its answer in a way that would bind the thoughts before it, too."""
    wire = request.to_wire()
    if wire.get("tool_choice") not in (None, "auto", "none"):
        return True
    return any(wire.get(name) and wire[name] != {"type": "text"} for name in BINDING)
