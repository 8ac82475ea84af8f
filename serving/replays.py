"""Answers given again: to a request with the same `Idempotency-Key`, and of the response cache to an equal request.

Both are of one tenant alone. Equal requests at the same time share one generation, and only a whole, good answer is
kept, so that after a failure, or when the client left before the end, the same request generates anew.

Deterministic, and so fit for the cache, is what the engine answers equally each time as far as it depends on the
request: a generation at temperature 0, which vLLM makes greedy, or with a seed, from which vLLM draws for each request
by itself; and whatever is computed and not generated (embeddings, scores, tokens). Not what reads anything beside the
request: earlier responses, conversations, tools that run on a server, media fetched from an address.
"""

import asyncio
import hashlib
import math
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import orjson

from engine.asked import DeadlineOver
from engine.reading import CHAT, RESPONSES, STREAMING, TEXT
from engine.room import Room
from penstock import metrics
from penstock.callers import Caller
from penstock.config import Config
from penstock.errors import BadRequest, KeyReused, Overloaded, RateLimited
from serving.exchange import Exchange, Headers
from serving.forwarded import DEADLINE, deadline_of
from serving.recording import Recording
from serving.relay import as_json
from serving.shelf import Key, Shelf
from serving.wire import Dialect

IDEMPOTENCY_KEY = b"idempotency-key"
LONGEST_KEY = 255
KEPT_BYTES = 64 * 2**20
KEPT_S = 24 * 3600.0
REPLAYED: Headers = [(b"idempotent-replayed", b"true")]
HIT: Headers = [(b"x-penstock-cache", b"hit")]
MISS: Headers = [(b"x-penstock-cache", b"miss")]

SEEDED = frozenset({CHAT, TEXT})
SAY_WHO = frozenset(
    "user metadata safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options cache_salt "
    "priority".split()
)
"""Fields that change nothing about an answer. /v1/responses repeats them in its answers, so that there they do."""
MAY_CHANGE = (b"accept", b"anthropic-version", b"anthropic-beta")
"""Headers that reach the engine and may change what it answers."""
OUTSIDE = ("web_search_options", "mcp_servers", "kv_transfer_params")
OUTSIDE_OF_RESPONSES = ("previous_response_id", "conversation", "background", "prompt")
FETCHED = re.compile(rb'"[a-z_]*url":"(?!data:)')

Work = Callable[[Exchange], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Running:
    """A generation, and whose limits it is under: those of who asked first."""

    asked: bytes
    by: str
    recording: Recording


def always(recording: Recording) -> bool:
    return True


class Once:
    """Equal requests of a tenant are answered once: what is on the shelf, else what is being generated, else anew."""

    def __init__(self, shelf: Shelf, of: str, first: Headers, again: Headers) -> None:
        """`of` is for the metrics; `first` and `again` are the headers of a generated answer and of one given again."""
        self.shelf = shelf
        self._of = of
        self._first = first
        self._again = again
        self._running: dict[Key, Running] = {}
        self._rooms: WeakValueDictionary[str, Room] = WeakValueDictionary()  # a tenant's, while it has anything in it

    async def answer(
        self,
        key: Key,
        asked: bytes,
        by: str,
        exchange: Exchange,
        dialect: Dialect,
        work: Work,
        fits: Callable[[Recording], bool] = always,
    ) -> None:
        """`asked`: the digest of all that matters of the request; `by`: the id of its caller. What does not fit is
        not kept. Raises KeyReused where the key's is another request."""
        while True:
            if kept := self.shelf.find(key):
                same(kept.asked, asked)
                metrics.replays.inc(self._of)
                return await kept.answer.give(exchange, dialect, self._again)
            running = self._running.get(key)
            if running is None or not running.recording.kept:
                recording = self._begun(key, asked, by, exchange, work, fits)
                return await recording.give(exchange, dialect, self._first, again=False)
            same(running.asked, asked)
            try:
                await running.recording.give(exchange, dialect, self._again, again=True)
            except (RateLimited, Overloaded):  # of the limits and the rank of who asked first
                if running.by == by or exchange.status is not None:
                    raise
            else:
                return metrics.replays.inc(self._of)

    def _begun(
        self, key: Key, asked: bytes, by: str, exchange: Exchange, work: Work, fits: Callable[[Recording], bool]
    ) -> Recording:
        headers = {name: value for name, value in exchange.headers.items() if name != DEADLINE}  # each has its own
        room = self._rooms.get(key[0])
        if room is None:
            room = self._rooms[key[0]] = Room(self.shelf.max_bytes)
        recording = Recording(exchange.path, headers, exchange.request_id, room)
        running = Running(asked, by, recording)

        def over(recording: Recording) -> None:
            if self._running.get(key) is running:
                del self._running[key]
            if recording.good and fits(recording):
                self.shelf.keep(key, asked, recording.recorded())

        self._running[key] = running
        recording.begin(work(recording), over)
        return recording


class Replays:
    """`concern` says whether a request is for `serve`; every other way it costs a look-up."""

    def __init__(self, config: Config) -> None:
        self._keys = Once(Shelf(KEPT_BYTES, KEPT_S), "key", (), REPLAYED)
        self._cache = cache_of(config)

    def change(self, before: Config, after: Config) -> None:
        """A model of the same name may be another now, so that the cache begins anew; promises are kept."""
        if any(getattr(before, part) != getattr(after, part) for part in ("response_cache", "engines", "models")):
            self._cache = cache_of(after)

    def concern(self, exchange: Exchange, body: Mapping[str, Any], *, cached: bool = True) -> bool:
        """`cached`: of a model whose answers depend on the request alone, as far as its engine is deterministic."""
        if IDEMPOTENCY_KEY in exchange.headers:
            return True
        return cached and self._cache is not None and is_deterministic(exchange.path, body)

    async def serve(
        self,
        exchange: Exchange,
        caller: Caller,
        body: Mapping[str, Any],
        dialect: Dialect,
        work: Work,
        version: str | None = None,
        chosen: bytes = b"",
        *,
        cached: bool = True,
    ) -> None:
        """`work` generates, on an exchange that is for all who ask the same; `chosen` is what of the request is not in
        the body. `version` is to answer now: the cache
        gives none of another one's answers, a key is a promise of one answer. Raises PenstockError."""
        cache = self._cache if cached else None
        if cache and is_deterministic(exchange.path, body) and (name := name_of(exchange, body, version)):
            key, generate = (caller.tenant, name), work
            fits = lambda recording: recording.version == version  # noqa: E731
            work = lambda inner: cache.answer(key, name, caller.id, inner, dialect, generate, fits)  # noqa: E731
        deadline = deadline_of(exchange) if DEADLINE in exchange.headers else math.inf
        try:
            async with asyncio.timeout_at(deadline if deadline < math.inf else None) as patience:
                await self._kept_to(exchange, caller, body, dialect, work, chosen)
        except TimeoutError:
            if patience.expired():
                raise DeadlineOver from None
            raise

    async def _kept_to(
        self, exchange: Exchange, caller: Caller, body: Mapping[str, Any], dialect: Dialect, work: Work, chosen: bytes
    ) -> None:
        given = exchange.headers.get(IDEMPOTENCY_KEY)
        if given is None:
            return await work(exchange)
        if not 0 < len(given) <= LONGEST_KEY:
            raise BadRequest(f"an Idempotency-Key has 1 to {LONGEST_KEY} characters")
        asked = digest(exchange.path, as_json(body, orjson.OPT_SORT_KEYS), *([chosen] if chosen else []))
        if caller.guards:  # what another key of the tenant was answered has not passed them
            given = b"\0".join([given, caller.guards.encode()])
        await self._keys.answer((caller.tenant, given), asked, caller.id, exchange, dialect, work)


def cache_of(config: Config) -> Once | None:
    settings = config.response_cache
    return Once(Shelf(settings.max_bytes, settings.ttl_s), "cache", MISS, HIT) if settings.enabled else None


def is_deterministic(path: str, body: Mapping[str, Any]) -> bool:
    """As far as a few look-ups tell: `name_of` looks further."""
    if path in STREAMING and body.get("temperature") != 0 and not (path in SEEDED and body.get("seed") is not None):
        return False
    if path == RESPONSES:
        tools = body.get("tools") or ()
        if any(body.get(name) for name in OUTSIDE_OF_RESPONSES) or any(tool["type"] != "function" for tool in tools):
            return False
    return not any(body.get(name) for name in OUTSIDE)


def name_of(exchange: Exchange, body: Mapping[str, Any], version: str | None = None) -> bytes | None:
    """The same for requests that have the same answer; None for one whose answer is not to be kept."""
    if exchange.headers.get(b"cache-control", b"") in (b"no-cache", b"no-store"):
        return None
    if exchange.path != RESPONSES:
        body = {name: value for name, value in body.items() if name not in SAY_WHO}
    written = as_json(body, orjson.OPT_SORT_KEYS)
    if FETCHED.search(written):
        return None
    said = (exchange.headers.get(name, b"") for name in MAY_CHANGE)
    return digest(exchange.path, *said, (version or "").encode(), written)


def digest(path: str, *parts: bytes) -> bytes:
    sizes = b",".join([b"%d" % len(part) for part in parts])
    return hashlib.sha256(b"\0".join([path.encode(), sizes, *parts])).digest()


def same(before: bytes, now: bytes) -> None:
    if before != now:
        raise KeyReused("this Idempotency-Key was used for another request: a new request needs a new key")
