"""An answer as a sequence of blocks (reasoning, text, calls of tools), as Responses and Messages have it.

Deltas come in any order; of blocks one is open at a time, and each begins, goes on and ends. A shape says in its
route's words how. What was streamed is what the end tells: a block of the reply is told there only where nothing of
its kind has come before.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from penstock.chat import Delta, Message, Reply
from penstock.errors import StreamInterrupted

Kind = Literal["reasoning", "text", "refusal", "call"]


@dataclass(eq=False, slots=True)
class Block:
    """`number` is its place among the answer's; `call` is the index, `call_id` and `name` are those of a tool's call,
    whose arguments are its pieces."""

    kind: Kind
    number: int
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    call: int = 0
    call_id: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Blocks:
    """Of one stream."""

    def __init__(self) -> None:
        self.told: list[Block] = []
        self._open: Block | None = None

    def shows(self, kind: Kind) -> bool:
        return True

    def begun(self, block: Block) -> bytes:
        raise NotImplementedError

    def gone_on(self, block: Block, piece: str, logprobs: list[Any]) -> bytes:
        raise NotImplementedError

    def ended(self, block: Block) -> bytes:
        raise NotImplementedError

    def take(self, delta: Delta) -> bytes:
        """The events of a delta. Raises StreamInterrupted for one that goes back to a call which has ended."""
        assert delta.choice == 0
        if not delta.reasoning and not delta.tool_calls:
            return self._say("text", delta.content, delta.logprobs) if delta.content else b""
        events = []
        if delta.reasoning:
            events.append(self._say("reasoning", delta.reasoning))
        if delta.content:
            events.append(self._say("text", delta.content, delta.logprobs))
        events += map(self._call, delta.tool_calls)
        return b"".join(events)

    def rest(self, reply: Reply) -> bytes:
        """What is in the reply and has not come, and the end of the last block."""
        kinds = {block.kind for block in self.told}
        events = []
        for block in blocks_of(reply.message):
            if block.kind not in kinds and self.shows(block.kind):
                events += [self._begin(block), self._go_on(block, block.text)]
        return b"".join([*events, self._end()])

    def _say(self, kind: Kind, piece: str, logprobs: Mapping[str, Any] | None = None) -> bytes:
        block = self._open
        if block is not None and block.kind == kind:
            return self._add(block, piece, logprobs)
        block = Block(kind, 0)
        return self._begin(block) + self._add(block, piece, logprobs)

    def _add(self, block: Block, piece: str, logprobs: Mapping[str, Any] | None) -> bytes:
        tokens = logprobs_of(logprobs) if logprobs else []
        block.pieces.append(piece)
        block.logprobs += tokens
        return self.gone_on(block, piece, tokens)

    def _call(self, call: Mapping[str, Any]) -> bytes:
        index, function = call.get("index") or 0, call.get("function") or {}
        block = self._open
        events = b""
        if block is None or block.kind != "call" or block.call != index:
            if any(before.kind == "call" and before.call == index for before in self.told):
                raise StreamInterrupted("the answer went back to a call of a tool that had ended")
            block = Block("call", 0, call=index, call_id=call.get("id") or "", name=function.get("name") or "")
            events = self._begin(block)
        piece = function.get("arguments")
        return events + self._add(block, piece, None) if piece else events

    def _begin(self, block: Block) -> bytes:
        before = self._end()
        block.number = len(self.told)
        self.told.append(block)
        self._open = block
        return before + self.begun(block)

    def _go_on(self, block: Block, text: str) -> bytes:
        return self.gone_on(block, text, block.logprobs) if text else b""

    def _end(self) -> bytes:
        block, self._open = self._open, None
        return self.ended(block) if block else b""


def blocks_of(message: Message, logprobs: Mapping[str, Any] | None = None) -> Iterator[Block]:
    """Those of a whole message, in the order in which they are told."""
    extra = message.model_extra or {}
    tokens = logprobs_of(logprobs) if logprobs else []
    said: list[tuple[Kind, str]] = [
        ("reasoning", extra.get("reasoning") or extra.get("reasoning_content") or ""),
        ("text", message.text),
        ("refusal", extra.get("refusal") or ""),
    ]
    number = 0
    for kind, text in said:
        if text:
            yield Block(kind, number, [text], tokens if kind == "text" else [])
            number += 1
    for index, call in enumerate(message.tool_calls or ()):
        function = call["function"]
        arguments = [function.get("arguments") or ""]
        yield Block("call", number + index, arguments, call=index, call_id=call.get("id") or "", name=function["name"])


def logprobs_of(logprobs: Mapping[str, Any]) -> list[Any]:
    """A chat's, token by token."""
    return list(logprobs.get("content") or ())
