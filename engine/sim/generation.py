"""One generation, as the moves of its answer: wait for a slot, read the prompt, say word after word."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson

from engine.sim.asked import Asked, Model, Refused
from engine.sim.cache import BLOCK_TOKENS, PrefixCache
from engine.sim.figures import Figures
from engine.sim.moves import STREAM_HEAD, Event, Moves, Turn, Whole
from engine.sim.named_shapes import Messages, Responses
from engine.sim.scheduler import Scheduler
from engine.sim.shapes import Chat, Completion, Ended, Shape, Used
from engine.sim.text import Prompt, words
from engine.sim.words import Word

SHAPES: Mapping[str, Callable[[Asked], Shape]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completion,
    "/v1/responses": Responses,
    "/v1/messages": Messages,
}
NOTHING = b'""'
SLICE_TOKENS = 1024  # after so many that nobody waits for, others have their turn
ENDLESS_TOKENS = 1 << 60


@dataclass(frozen=True, slots=True)
class Speed:
    """`itl_s`: seconds between two tokens of a stream. `prefill_tokens_per_s` 0: prompts cost no time."""

    ttft_s: float = 0.0
    itl_s: float = 0.0
    prefill_tokens_per_s: float = 0.0


class Choice:
    """One answer to a prompt, as far as it has come."""

    def __init__(self, index: int, prompt: Prompt, asked: Asked, mean_tokens: int) -> None:
        self.index = index
        self.words = words(prompt, mean_tokens)
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


class Generations:
    """Makes the moves of each answer, and counts."""

    def __init__(self, model: Model, speed: Speed, scheduler: Scheduler, cache: PrefixCache) -> None:
        self.model = model
        self.speed = speed
        self.scheduler = scheduler
        self.cache = cache
        self.figures = Figures()
        self.live: set[Generation] = set()
        self.started = self.completed = self.aborted = 0

    def make(self, asked: Asked) -> "Generation":
        """Begins with the first of its moves. Raises Refused when the queue is full."""
        try:
            self.scheduler.check()
        except Refused:
            self.figures.rejections += 1
            raise
        return Generation(self, asked)

    def metrics(self) -> bytes:
        blocks = sum(-(-(one.asked.prompt_tokens + one.progress) // BLOCK_TOKENS) for one in self.live)
        return self.figures.text(
            self.model.name,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            kv_cache_used=min(1.0, blocks / max(1, self.cache.room)),
            unfinished_tokens=sum(one.progress for one in self.live),
        )


class Generation:
    """One request's. `moves` is played once; to close it before its end is the client's leaving."""

    def __init__(self, all: Generations, asked: Asked) -> None:
        self.all = all
        self.asked = asked
        self.shape = SHAPES[asked.path](asked)
        self.arrived_s = time.monotonic()
        self.first_s = 0.0
        self.cached_tokens = 0
        self.complete = False
        self.choices: list[Choice] = []

    @property
    def tokens(self) -> int:
        return sum(choice.tokens for choice in self.choices)

    @property
    def progress(self) -> int:
        """Tokens so far. A whole answer is made at once and then held back for as long as it would have taken."""
        if self.asked.stream or not self.all.speed.itl_s or not self.choices:
            return self.tokens
        steps = (time.monotonic() - self.first_s) / self.all.speed.itl_s if self.first_s else 0
        return min(self.tokens, int(steps + 1) * len(self.choices))

    @property
    def used(self) -> Used:
        return Used(self.asked.prompt_tokens, self.tokens, self.cached_tokens)

    @property
    def ended(self) -> list[Ended]:
        return [choice.ended for choice in self.choices if choice.ended]

    def moves(self) -> Moves:
        ticket = self.all.scheduler.enter()
        try:
            if self.asked.stream:
                yield STREAM_HEAD
            yield ticket
            yield self._begin()
            yield from self._stream() if self.asked.stream else self._whole()
        finally:
            self.all.scheduler.leave(ticket)
            self._leave()

    def _begin(self) -> float:
        """Seconds until the first token."""
        self.all.live.add(self)
        self.all.started += 1
        self.cached_tokens = sum(map(self.all.cache.hit, self.asked.prompt_ids))
        self.all.figures.read(self.asked.prompt_tokens, self.cached_tokens)
        for ids in self.asked.prompt_ids:
            self.all.cache.add(ids)
        mean_tokens = ENDLESS_TOKENS if self.asked.endless else self.all.model.mean_tokens
        self.choices = [
            Choice(index, prompt, self.asked, mean_tokens) for index, prompt in enumerate(self.asked.prompts)
        ]
        speed = self.all.speed
        uncached = self.asked.prompt_tokens - self.cached_tokens
        return speed.ttft_s + (uncached / speed.prefill_tokens_per_s if speed.prefill_tokens_per_s else 0.0)

    def _stream(self) -> Moves:
        itl_s, piece = self.all.speed.itl_s, self.shape.piece
        self._first_token()
        yield from self.shape.opening(self.used)
        speaking = list(self.choices)
        while speaking:
            for choice in speaking:
                text = choice.step()
                if choice.ended:
                    yield from self.shape.finish(choice.ended, text)
                    speaking = [other for other in speaking if not other.ended]
                else:
                    yield Event("token", piece(choice.index, text))
            if itl_s and speaking:
                yield itl_s
        self._complete()
        yield from self.shape.ending(self.ended, self.used)
        yield Turn.BODY

    def _whole(self) -> Moves:
        for choice in self.choices:
            while not choice.ended:
                choice.step()
                if choice.tokens % SLICE_TOKENS == 0:
                    yield Turn.LOOP
        self._first_token()
        yield self.all.speed.itl_s * (max(choice.tokens for choice in self.choices) - 1)
        self._complete()
        yield Whole(200, self.shape.whole(self.ended, self.used))

    def _first_token(self) -> None:
        self.first_s = time.monotonic()
        self.all.figures.ttft_s.observe(self.first_s - self.arrived_s)

    def _complete(self) -> None:
        self.complete = True
        now_s = time.monotonic()
        self.all.figures.e2e_s.observe(now_s - self.arrived_s)
        gaps = max(choice.tokens for choice in self.choices) - 1
        if gaps:
            self.all.figures.itl_s.observe((now_s - self.first_s) / gaps, gaps)

    def _leave(self) -> None:
        if self not in self.all.live:
            return  # it never had a slot
        self.all.figures.generation_tokens += self.progress
        self.all.live.discard(self)
        for choice in self.choices:
            self.all.figures.finished[choice.ended.reason if self.complete and choice.ended else "abort"] += 1
        if not self.complete:
            self.all.aborted += 1
            return
        self.all.completed += 1
        each = len(self.choices) // len(self.asked.prompt_ids)
        for choice in self.choices:
            self.all.cache.add([*self.asked.prompt_ids[choice.index // each], *(word.id for word in choice.said)])
