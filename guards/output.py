"""An answer on its way out: each choice has a filter for what it says, and one for what it thinks.

The calls of tools of a choice are withheld until they are whole: their arguments are JSON, in which the same text can
be written in many ways, and programs act on them. What is looked at is what they say; what is masked there is written
anew. A choice that is blocked ends there, alone; with the last one the engine's answer is cut off.
"""

import logging
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from guards.guard import Looked
from guards.hold_back import Cut
from guards.looking import SPANS, Blocked, Spans, Watch, cleaning, opinion, unforeseen
from guards.said import Said
from guards.seam import Across
from guards.texts import Noted, call, parts, within
from guards.vault import Vault
from guards.verdicts import Verdicts, took
from penstock.chat import ChatRequest, Choice, Delta, Emit, Message, Reply, Usage, silent
from penstock.errors import PenstockError

log = logging.getLogger(__name__)

REASONING = ("reasoning", "reasoning_content")


class Ended(Exception):
    """No choice goes on."""


class Output:
    """Of one policy; made once."""

    def __init__(self, watches: Sequence[Watch], whole: Literal["buffer", "end"]) -> None:
        self.watches = watches
        self.spans = Spans(watches, "output")
        self.looks = [watch for watch in watches if watch.look]
        self.buffers = whole == "buffer" and any(watch.decides for watch in watches)

    async def across(self, request: ChatRequest, verdicts: Verdicts) -> Across | None:
        """The end of a prompt that is gone on with as it stands. Raises GuardFailed."""
        return await self.spans.across(request.messages[0].text, verdicts) if request.is_plain else None

    def nothing_to_do(self, vault: Vault) -> bool:
        return not self.watches and not vault


class Passing:
    """One answer. `vault`: what was masked in the request; `across`: the end of the prompt that it goes on with.

    `heard` is what it comes to, and raises `Ended` when no choice goes on; `whole`, or then `ended`, is what goes out.
    """

    def __init__(
        self,
        output: Output,
        request: ChatRequest,
        emit: Emit,
        vault: Vault,
        verdicts: Verdicts,
        across: Across | None = None,
    ) -> None:
        self.output = output
        self.buffers = output.buffers
        self.request = request
        self.emit = emit
        self.stream = silent if output.buffers else emit
        self.vault = vault
        self.verdicts = verdicts
        self.across = across
        self.choices: dict[int, Said] = {}
        self.first: Said | None = None
        self.count = getattr(request, "n", None) or 1
        self.over = False
        """No choice goes on."""

    @property
    def seconds(self) -> float:
        """What looking for places took, but for words that were known."""
        return sum(said.content.hold.seconds + said.reasoning.hold.seconds for said in self.choices.values())

    def __enter__(self) -> "Passing":
        for watch in self.output.watches:
            self.verdicts.ran(watch.name, "output")
        return self

    def __exit__(self, *raised: object) -> None:
        if self.output.spans.watches:
            took(SPANS, "output", self.seconds)

    async def whole(self, reply: Reply) -> Reply:
        """Raises GuardFailed."""
        choices = [await self._end(index, choice) for index, choice in enumerate(reply.choices)]
        return Reply.of(choices, reply.usage)

    async def ended(self) -> Reply:
        """Of an answer that no choice went on with."""
        choices = [await self._end(index, None) for index in sorted(self.choices)]
        return Reply.of(choices, Usage())

    def heard(self, delta: Delta) -> Awaitable[None]:
        """What most pieces come to, and no more calls than that takes; the rest is `_heard`."""
        said = self.choices.get(delta.choice) if delta.choice else self.first
        if said is None:
            said = self._begun(delta.choice)
        waiting, piece = said.waiting, delta.content
        if waiting is not None:
            if (
                piece
                and piece[0] == " "
                and waiting.content in said.quiet
                and not (delta.reasoning or delta.tool_calls or delta.logprobs)
            ):
                said.waiting = delta
                said.came(piece)
                return self.stream(waiting)
            said.wake()
        return self._heard(said, delta)

    async def _heard(self, said: Said, delta: Delta) -> None:
        piece = delta.content
        if piece and said.speaks and not delta.reasoning:
            try:
                passed = said.content.skim(piece)
            except Exception as error:  # what nobody has looked at does not go out
                raise unforeseen(self.verdicts.policy, error) from None
            if passed is not None:
                if not (delta.tool_calls or delta.logprobs):
                    said.wait(delta)
                if passed:
                    await self.stream(Delta(passed, choice=delta.choice))
                return
        if not said.blocked:
            await self._look_into(said, delta)

    async def _look_into(self, said: Said, delta: Delta) -> None:
        content = reasoning = ""
        try:
            for passed in said.think(delta.reasoning) if delta.reasoning else ():
                reasoning += passed
            if delta.content:
                if not said.speaks:
                    reasoning += said.pause()
                content = said.content.feed(delta.content)
        except Blocked as blocked:
            self._block(said, blocked)
            reasoning += said.reasoning.rest()
            content += said.content.rest()
        except Exception as error:  # what nobody has looked at does not go out
            raise unforeseen(self.verdicts.policy, error) from None
        if content or reasoning:
            await self.stream(Delta(content, reasoning, choice=delta.choice))
        if said.blocked and self.over:
            raise Ended

    def _begun(self, index: int) -> Said:
        said = self.choices[index] = Said(self.output.spans, self.vault, self.verdicts, self.across)
        if index == 0:
            self.first = said
        return said

    def _block(self, said: Said, blocked: Blocked) -> None:
        said.blocked, said.speaks = blocked, False
        self.over = sum(each.blocked is not None for each in self.choices.values()) >= self.count

    async def _end(self, index: int, choice: Choice | None) -> Choice:
        """A choice as it goes out, when all of it has come; None for one that was cut off here."""
        said = self.choices.get(index) or self._begun(index)
        said.wake()
        cut = self.output.spans.cut if choice and is_broken_off(choice, self.request) else None
        if choice and not said.blocked:
            await self._finish(index, said, cut)
        if choice and not said.blocked:
            try:
                message = Message(**rewritten(choice.message, said, cut))
                passed = replace(choice, message=message, logprobs=None)
                await self._look(passed)
            except Blocked as blocked:
                self._block(said, blocked)
            except RecursionError:
                self._block(said, Blocked("arguments", ["nesting"]))
            except PenstockError:
                raise
            except Exception as error:  # what nobody has looked at does not go out
                raise unforeseen(self.verdicts.policy, error) from None
            else:
                await self._release(index, passed)
                return passed
        return Choice(Message(role="assistant", **self._released(said)), "content_filter")

    async def _finish(self, index: int, said: Said, cut: Cut | None) -> None:
        """Nothing more comes of its texts."""
        reasoning = content = ""
        try:
            reasoning = said.reasoning.flush(cut or said.end_of_thought)
            content = said.content.flush(cut)
        except Blocked as blocked:
            self._block(said, blocked)
            reasoning += said.reasoning.rest()
            content += said.content.rest()
        except Exception as error:  # what nobody has looked at does not go out
            raise unforeseen(self.verdicts.policy, error) from None
        if content or reasoning:
            await self.stream(Delta(content, reasoning, choice=index))

    def _released(self, said: Said) -> dict[str, Any]:
        """What of a blocked choice is out already."""
        if self.buffers:
            return {"content": None}
        reasoning = "".join(said.reasoning.out)
        return {"content": "".join(said.content.out) or None} | ({"reasoning": reasoning} if reasoning else {})

    async def _look(self, choice: Choice) -> None:
        if not self.output.looks:
            return
        texts = Noted()
        said = choice.message.model_dump(exclude_unset=True, exclude={"role"})
        calls = said.pop("tool_calls", None) or ()
        for name in (*REASONING, "content"):
            within(said.pop(name, None), texts)
        for each in calls:
            call(each, texts)
        within(list(said.values()), texts)
        looked = Looked("output", texts, self.request, choice)
        for watch in self.output.looks:
            await opinion(watch, looked, self.verdicts)

    async def _release(self, index: int, choice: Choice) -> None:
        """What was withheld until here: calls of tools, and all of it where a verdict had to come first."""
        message = choice.message
        if self.buffers:
            reasoning = getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None) or ""
            if reasoning or message.text:
                await self.emit(Delta(message.text, reasoning, choice=index))
        if message.tool_calls:
            calls = [{"index": number, **each} for number, each in enumerate(message.tool_calls)]
            await self.emit(Delta(tool_calls=calls, choice=index))


def is_broken_off(choice: Choice, request: ChatRequest) -> bool:
    """Whether the caller's limits have ended it, or another policy. No engine tells a stop token, and not all a stop
    string: where there is one that has not been told, it has."""
    if choice.finish_reason in ("length", "content_filter") or choice.stopped_by is not None:
        return True
    untold = getattr(request, "stop", None) if choice.stop_untold else None
    if untold:
        warn_of(request.model)
    return bool(untold or getattr(request, "stop_token_ids", None))


@lru_cache(maxsize=1024)
def warn_of(model: str) -> None:
    """Once of each: who reads the log wonders where last words have gone."""
    log.warning(
        "the engine of %s does not tell which stop string has ended an answer: guarded answers to requests with `stop` "
        "end before what might have become a match",
        model,
    )


def rewritten(message: Message, said: Said, cut: Cut | None) -> dict[str, Any]:
    """The whole message as it goes out. Its texts have passed as they came; what has not is looked at here. `cut`: of
    one that was broken off. Raises Blocked."""
    clean = cleaning(said.whole())
    torn = cleaning(said.whole(), cut)
    new: dict[str, Any] = {}
    for name, value in message.model_dump(exclude_unset=True).items():
        if name == "role":
            new[name] = value
        elif name == "tool_calls" and value:
            new[name] = [call(each, clean, torn) for each in value]
        elif name == "function_call" and value:
            new[name] = call({"function": value}, clean, torn)["function"]
        elif name == "content" and isinstance(value, list):
            new[name] = parts(value, clean)
        elif isinstance(value, str) and (name == "content" or name in REASONING):
            passed = said.content if name == "content" else said.reasoning
            if value and value == "".join(passed.came):
                new[name] = "".join(passed.out)
            else:
                new[name] = cleaning(said.again(), cut)(value) if name == "content" else torn(value)
        else:
            new[name] = within(value, clean)
    return new
