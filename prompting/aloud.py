"""What is thought aloud on the way to an answer: it streams as reasoning, and the reply's message has it too."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from penstock.chat import Chat, ChatRequest, Delta, Emit, Message, Reply, silent
from prompting.asking import chats_only, each_choice, not_begun, reasoning_of

GAP = "\n\n"


class Aloud:
    """The stream of one choice: calls on the way to the answer, in order, then the answer itself.

    Without `show` nothing of the calls on the way is seen. `begun`: whether something of the answer is out, after
    which no other can take its place.
    """

    def __init__(self, emit: Emit, *, show: bool) -> None:
        self.begun = False
        self._emit = emit
        self._show = show
        self._thought: list[str] = []
        self._part: object = None

    async def ask(self, chat: Chat, request: ChatRequest, step: str) -> Reply:
        """A call on the way, its usage told as that of `step`."""
        reply = await chat(request, self.thinking())
        return replace(reply, usage=reply.usage.of(step))

    def thinking(self) -> Emit:
        """Where one call on the way streams to. What it says begins a paragraph."""
        if not self._show:
            return silent
        reasoning, content = object(), object()

        async def think(delta: Delta) -> None:
            await self._think(reasoning, delta.reasoning)
            await self._think(content, delta.content)

        return think

    async def tell(self, text: str) -> None:
        """A paragraph that no call has streamed."""
        if self._show:
            await self._think(object(), text)

    async def _think(self, part: object, text: str) -> None:
        if not text:
            return
        if self._thought and part is not self._part:
            text = GAP + text
        self._part = part
        self._thought.append(text)
        await self._emit(Delta(reasoning=text))

    async def answer(self, delta: Delta) -> None:
        """The `Emit` of the call that writes the answer."""
        if delta.content or delta.tool_calls:
            self.begun = True
        elif delta.reasoning and self._thought and self._part is not self:
            delta = replace(delta, reasoning=GAP + delta.reasoning)
        self._part = self
        await self._emit(delta)

    def whole(self, reply: Reply) -> Reply:
        """The answer, its message with the reasoning that has been streamed before it."""
        if not self._thought:
            return reply
        own = reasoning_of(reply.message)
        thought = "".join(self._thought) + (GAP + own if own else "")
        return replace(reply, message=reply.message.model_copy(update={"reasoning": thought}))

    async def give(self, draft: Reply) -> Reply:
        """A reply that came as a call on the way, as the answer."""
        message = draft.message
        own = reasoning_of(message)
        if self._show:  # then that has been seen
            kept = message.model_dump(exclude_unset=True, exclude={"reasoning", "reasoning_content"})
            message = Message(**kept)
        elif own:
            await self.answer(Delta(reasoning=own))
        calls = [{"index": index, **call} for index, call in enumerate(message.tool_calls or ())]
        if message.text or calls:
            await self.answer(Delta(content=message.text, tool_calls=calls, logprobs=draft.logprobs))
        return self.whole(replace(draft, message=message))


def thought_through(step: str, show: bool, once: Callable[[ChatRequest, Aloud], Awaitable[Reply]]) -> Chat:
    """A step's `Chat`: `once` answers a request for one choice, with calls on the way."""

    async def answered(request: ChatRequest, emit: Emit) -> Reply:
        chats_only(request, step)
        not_begun(request, step)
        return await each_choice(request, emit, lambda single, emit: once(single, Aloud(emit, show=show)))

    return answered
