"""One generation, as the moves of its answer: wait for a slot, read the prompt, say word after word."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.sim.asked import Asked, Model, Refused
from engine.sim.cache import BLOCK_TOKENS, PrefixCache
from engine.sim.choice import Choice
from engine.sim.figures import Figures
from engine.sim.moves import STREAM_HEAD, Event, Moves, Turn, Whole
from engine.sim.named_shapes import Messages, Responses
from engine.sim.scheduler import Scheduler
from engine.sim.shapes import Chat, Completion, Ended, Shape, Used

SHAPES: Mapping[str, Callable[[Asked], Shape]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completion,
    "/v1/responses": Responses,
    "/v1/messages": Messages,
}
SLICE_TOKENS = 1024  # after so many that nobody waits for, others have their turn


@dataclass(frozen=True, slots=True)
class Speed:
    """`itl_s`: seconds between two tokens of a stream. `prefill_tokens_per_s` 0: prompts cost no time."""

    ttft_s: float = 0.0
    itl_s: float = 0.0
    prefill_tokens_per_s: float = 0.0


class Core:
    """What all generations share: slots, cache, figures."""

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

    def __init__(self, core: Core, asked: Asked) -> None:
        self.core = core
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
        if self.complete or self.asked.stream or not self.core.speed.itl_s or not self.choices:
            return self.tokens
        steps = (time.monotonic() - self.first_s) / self.core.speed.itl_s if self.first_s else 0
        return min(self.tokens, int(steps + 1) * len(self.choices))

    @property
    def used(self) -> Used:
        return Used(self.asked.prompt_tokens, self.tokens, self.cached_tokens)

    @property
    def ended(self) -> list[Ended]:
        return [choice.ended for choice in self.choices if choice.ended]

    def moves(self) -> Moves:
        ticket = self.core.scheduler.enter()
        try:
            if self.asked.stream:
                yield STREAM_HEAD
            yield ticket
            yield self._begin()
            yield from self._stream() if self.asked.stream else self._whole()
        finally:
            self.core.scheduler.leave(ticket)
            self._leave()

    def _begin(self) -> float:
        """Seconds until the first token."""
        self.core.live.add(self)
        self.core.started += 1
        self.cached_tokens = sum(self.core.cache.hit(ids, self.asked.salt) for ids in self.asked.prompt_ids)
        self.core.figures.read(self.asked.prompt_tokens, self.cached_tokens)
        for ids in self.asked.prompt_ids:
            self.core.cache.add(ids, self.asked.salt)
        self.choices = [Choice(index, self.asked, self.core.model) for index in range(len(self.asked.prompts))]
        speed = self.core.speed
        uncached = self.asked.prompt_tokens - self.cached_tokens
        return speed.ttft_s + (uncached / speed.prefill_tokens_per_s if speed.prefill_tokens_per_s else 0.0)

    def _stream(self) -> Moves:
        itl_s, piece = self.core.speed.itl_s, self.shape.piece
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
        yield self.core.speed.itl_s * (max(choice.tokens for choice in self.choices) - 1)
        self._complete()
        yield Whole(200, self.shape.whole(self.ended, self.used))

    def _first_token(self) -> None:
        self.first_s = time.monotonic()
        self.core.figures.ttft_s.observe(self.first_s - self.arrived_s)

    def _complete(self) -> None:
        self.complete = True
        now_s = time.monotonic()
        self.core.figures.e2e_s.observe(now_s - self.arrived_s)
        gaps = max(choice.tokens for choice in self.choices) - 1
        if gaps:
            self.core.figures.itl_s.observe((now_s - self.first_s) / gaps, gaps)

    def _leave(self) -> None:
        if self not in self.core.live:
            return  # it never had a slot
        self.core.figures.generation_tokens += self.progress
        self.core.live.discard(self)
        for choice in self.choices:
            self.core.figures.finished[choice.ended.reason if self.complete and choice.ended else "abort"] += 1
        if not self.complete:
            self.core.aborted += 1
            return
        self.core.completed += 1
        each = len(self.choices) // len(self.asked.prompt_ids)
        for choice in self.choices:
            said = [*self.asked.prompt_ids[choice.index // each], *(word.id for word in choice.said)]
            self.core.cache.add(said, self.asked.salt)
