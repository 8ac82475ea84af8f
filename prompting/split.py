"""Reasoning and answer of one stream, cut apart at a marker, in the same way however the stream comes in pieces."""

from penstock.chat import Delta, Message

BLANK = " \t\r\n"


class Split:
    """Of one choice. What stands before the marker is reasoning, what follows it is the answer.

    Where reasoning comes by itself, before any content, all content is the answer; so it is with `answering`. A marker
    that such an answer begins with is left out.
    """

    def __init__(self, marker: str, *, answering: bool = False) -> None:
        self.marker = marker
        self.found = False
        """Whether the marker came, or is not needed."""
        self._answering = answering
        self._held = ""
        self._begun = False
        """Whether the answer has."""
        self._tail = ""

    def take(self, delta: Delta) -> Delta:
        """What of it can be told now, which may be nothing."""
        if self._begun:
            return delta
        if delta.reasoning and not self._tail and not self._held:
            self._answering = True
        reasoning, content = self._cut(delta.content) if delta.content else ("", "")
        return Delta(content, delta.reasoning + reasoning, delta.tool_calls, delta.logprobs, delta.choice)

    def rest(self) -> Delta:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        if self._answering:
            self.found = True
        return Delta(content=held) if self.found else Delta(reasoning=held)

    def _cut(self, text: str) -> tuple[str, str]:
        text, self._held = self._held + text, ""
        if self.found:
            return "", self._first(text)
        if self._answering:
            return "", self._without_marker(text)
        before, marker, after = text.partition(self.marker)
        if not marker:
            kept = overlap(text, self.marker)
            before, self._held = text[: len(text) - kept], text[len(text) - kept :]
        self._tail = (self._tail + before)[-2:]
        if not marker:
            return before, ""
        self.found = True
        return before, self._first(after)

    def _without_marker(self, text: str) -> str:
        bare = text.lstrip(BLANK)
        if self.marker.startswith(bare) and bare != self.marker:
            self._held = text
            return ""
        self.found = True
        if bare.startswith(self.marker):
            return self._first(bare.removeprefix(self.marker))
        self._begun = True
        return text

    def _first(self, text: str) -> str:
        """The answer's beginning, without what parts it from the marker: `**Answer:** 7` -> `7`."""
        text = text.lstrip(BLANK + "*" if self._tail == "**" else BLANK)
        self._begun = bool(text)
        return text


def overlap(text: str, marker: str) -> int:
    """How much of the end of `text` may be the beginning of `marker`: `so An`, `Answer:` -> 2."""
    longest = min(len(text), len(marker) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(marker[:size])), 0)


def saying(message: Message, content: str, reasoning: str = "") -> Message:
    """The same turn with this content; what was thought stays out of it, or stands beside it as `reasoning`."""
    kept = message.model_dump(exclude_unset=True, exclude={"content", "reasoning", "reasoning_content"})
    said = content if content or not message.tool_calls else None
    return Message(**kept, content=said, **({"reasoning": reasoning} if reasoning else {}))
