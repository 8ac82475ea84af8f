"""One answer to a prompt, token by token: where it ends, and what of it may be shown yet."""

import orjson

from engine.sim.asked import Asked, Model
from engine.sim.shapes import Ended
from engine.sim.text import words
from engine.sim.words import Word

NOTHING = b'""'
ENDLESS_TOKENS = 1 << 60


class Choice:
    """One answer to a prompt, as far as it has come."""

    def __init__(self, index: int, asked: Asked, model: Model) -> None:
        self.index = index
        self.words = words(asked.prompts[index], ENDLESS_TOKENS if asked.endless else model.mean_tokens)
        self.limit = asked.max_tokens
        self.stops = asked.stop
        self.held_chars = max(map(len, asked.stop), default=1) - 1
        self.said: list[Word] = []
        self.tokens = 0
        self.ended: Ended | None = None
        self.text = ""  # of those that stop strings are looked for in
        self.shown = 0  # characters of it

    def step(self) -> bytes:
        """The text of the next token as JSON, and `ended` if it is the last. The end of the text counts as a token."""
        word = next(self.words, None)
        self.tokens += 1
        if word is not None:
            self.said.append(word)
        if self.stops:
            return self._checked(word)
        if word is None:
            self._end("stop")
            return NOTHING
        if self.tokens >= self.limit:
            self._end("length")
        return word.json

    def _checked(self, word: Word | None) -> bytes:
        """As vLLM does it, what may be the beginning of a stop string is held back."""
        self.text += word.text if word else ""
        until = len(self.text) - self.held_chars
        found = [(at, stop) for stop in self.stops if (at := self.text.find(stop)) >= 0]
        if found:
            until, stop = min(found)
            self._end("stop", self.text[:until], stop)
        elif word is None or self.tokens >= self.limit:
            until = len(self.text)
            self._end("length" if word else "stop")
        shown, self.shown = self.shown, max(until, self.shown)
        return orjson.dumps(self.text[shown : self.shown])

    def _end(self, reason: str, text: str | None = None, stop: str | None = None) -> None:
        said = "".join(word.text for word in self.said) if text is None else text
        self.ended = Ended(self.index, said, reason, stop)
