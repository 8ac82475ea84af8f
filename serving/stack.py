"""Where the parts meet: the configuration becomes one served model per name, over the engines under them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson

from engine.asked import Limits
from engine.elsewhere import Elsewhere
from engine.holdings import keep_holdings
from engine.pool import Pool
from engine.replica import Replica
from engine.room import Room
from engine.route import Route
from engine.scripted import Scripted
from penstock.callers import Caller
from penstock.chat import Chat, ChatRequest, Emit, Reply
from penstock.config import Config, Engine, Gateway, Script
from penstock.errors import BadRequest
from registry.canaries import Canary
from registry.canary_figures import Both
from serving.answer import Answer, asking
from serving.composing import PLAIN, Composition
from serving.compositions import Compositions
from serving.engines import READY_POLL_S, ended, engines_here, served_by, watched
from serving.moderations import Moderation
from serving.relay import Relay
from serving.trial import Trial
from serving.upstream import whole
from serving.versions import Versions

Served = Relay | Answer
LINGER_S = 2.5
"""How long a pool that is idle is still there: a try that failed may be made again, and tokens are counted."""


class Stack:
    """The served models and the engines under them, moved from one configuration to the next between two requests.

    Those that run end on what they began with. What has not changed stays as it is: its pool, its connections, what
    is known of its caches. `failed` ends with the first error that an engine's watcher cannot mend.
    """

    def __init__(
        self,
        local: Mapping[str, Sequence[Replica]],
        failed: asyncio.Future[None],
        versions: Versions = Versions(),
    ) -> None:
        self.models: dict[str, Served] = {}
        self.relays: dict[str, Relay] = {}
        """Those of the models that an engine is under, whether steps stand around them or not."""
        self.pools: dict[str, Pool] = {}
        self.failed = failed
        self.room = Room()
        self.versions = versions
        self.left: Callable[[Sequence[Replica]], None] = lambda replicas: None
        self._config: Config | None = None
        self._local = local
        self._elsewhere: dict[str, Elsewhere] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._holding: dict[Replica, asyncio.Task[None]] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._coming: set[Pool] = set()
        self._leaving: list[Pool] = []
        self._adapters: set[tuple[str, str]] = set()  # engines, and what was asked for there
        self.count: Callable[[Canary], Both] = lambda canary: Both()
        self._tried: dict[str, Pool] = {}
        self._over: set[int] = set()  # canaries that have ended, and are still among the versions
        self.compositions = Compositions(self.other, self.ask)
        self._moderations: dict[str, Moderation] = {}

    @property
    def ready(self) -> bool:
        """Whether every engine has a replica that is, and the first try is over to give engines elsewhere the adapters
        that models had at the start.
        An engine that is added later counts from when it was first: a load balancer need not take the others' requests
        away for it."""
        self._coming = {pool for pool in self._coming if not pool.ready}
        return not self.versions.cold and all(pool.ready or pool in self._coming for pool in self.pools.values())

    async def until_ready(self) -> None:
        """As `ready` says; which engines those are may change meanwhile."""
        while not self.ready:
            await asyncio.sleep(READY_POLL_S)

    def change(self, config: Config) -> None:
        """Nothing here waits or fails: that `config` can be served is known (`serving/reload.py`)."""
        engines = {name: engine for name, engine in config.engines.items() if engine.kind != "scripted"}
        for name in self.pools.keys() - engines.keys():
            self._let_go(name, self.pools[name])
        self.pools = {name: self._pool(name, engine, config) for name, engine in engines.items()}
        self.room.most_bytes = config.gateway.max_answers_bytes
        self.models = self._served(config)
        self._moderations.clear()
        self._coming &= set(self.pools.values())
        self._config = config
        for name, pool in self._tried.items():
            pool.change(config.gateway.engine_wait_s, config.engines[name].routing)
            for replica in pool.replicas:
                replica.serve(served_by(config, name))
        self._try()

    def move(
        self,
        local: Mapping[str, Sequence[Replica]],
        versions: Versions,
        tried: Mapping[str, Sequence[Replica]] | None = None,
    ) -> None:
        """From the next request on these replicas answer, and these versions; `tried` are those of canaries. Those
        before end what they do; `left` is told of replicas that have."""
        assert self._config is not None
        before, self._local, self.versions = self.pools, local, versions
        self.pools = {
            name: pool if name not in local or set(pool.replicas) == set(local[name]) else self._moved(name, pool)
            for name, pool in before.items()
        }
        self._move_tried(tried or {})
        for name, relay in self.relays.items():
            relay.current = self._route(name, relay.current)
        self._try()

    def _move_tried(self, tried: Mapping[str, Sequence[Replica]]) -> None:
        """What was tried and is not any more ends what it does; that which has become the current one is not here."""
        for name, pool in list(self._tried.items()):
            if set(pool.replicas) != set(tried.get(name, ())):
                del self._tried[name]
                self._end(pool)
        for name, replicas in tried.items():
            if name not in self._tried:
                self._tried[name] = self._over_replicas(name, replicas)

    def end_trial(self, canary: Canary) -> None:
        """From the next request on all go where the alias points."""
        self._over.add(canary.id)
        self._try()

    def _try(self) -> None:
        """Models that have a canary have a trial. It is the same as before where nothing has changed."""
        canaries = {name: Canary.of(said) for name, said in self.versions.canaries.items()}
        self._over &= {canary.id for canary in canaries.values()}
        for name, relay in self.relays.items():
            canary = canaries.get(name)
            relay.trial = self._trial(name, relay.trial, canary) if canary else None

    def _trial(self, name: str, before: Trial | None, canary: Canary) -> Trial | None:
        assert self._config is not None
        model = self._config.models[name]
        adapter = canary.tried if model.adapter else None
        pool = self.pools[model.engine] if adapter else self._tried.get(model.engine)
        if canary.id in self._over or pool is None:
            return None
        if adapter:
            self._adapters.add((model.engine, adapter))
        if before and (before.canary, before.other.pool, before.other.name) == (canary, pool, adapter):
            return before
        return Trial(canary, Route(pool, adapter, canary.tried), self.count(canary))

    def with_steps(self, served: Served, written: Sequence[Any], caller: Caller) -> Answer:
        """The model with steps of the caller's choice in place of its own. Raises BadRequest, Forbidden."""
        composition = self.compositions.chosen(served.name, written, caller)
        said = orjson.dumps(written)
        if isinstance(served, Answer):
            return Answer(served.name, served.base, composition, served.budget, said)
        return Answer(served.name, served, composition, None, said)

    def guarded(self, served: Served, names: tuple[str, ...]) -> Answer:
        """The same behind these policies, the first outermost, for one of the callers that they are for."""
        answer = Answer(served.name, served) if isinstance(served, Relay) else served
        around, inside = self.compositions.policies(names), answer.composition
        both = Composition([*around.arounds, *inside.arounds], [*around.inputs, *inside.inputs])
        return Answer(answer.name, answer.base, both, answer.budget, answer.chosen)

    def makings(self, name: str, around: Sequence[str]) -> str | None:
        """What makes a model's answers behind these policies: `Compositions.makings`."""
        return self.compositions.makings(name, around, lambda other: self.models[other].version)

    def moderation(self, name: str) -> Moderation:
        """One of the configuration's `guards`, asked for its opinion. Raises PenstockError where it cannot be made."""
        found = self._moderations.get(name)
        if found is None:
            found = self._moderations[name] = Moderation(name, self.compositions.made(name))
        return found

    def other(self, name: str, guard: str) -> Chat:
        """A served model as a step asks it, or a guard, whichever one has the name by then, for the request that
        runs."""

        async def asked(request: ChatRequest, emit: Emit) -> Reply:
            now = asking.get()
            if guard:
                now = replace(now, meter=now.meter.of_guard(guard))
            chat = self.models[name].chat(now.exchange, now.body, now.meter, own=False)
            before = asking.set(now)  # for the steps of that model, and what they ask
            try:
                return await chat(request.but(**self._salted(request.to_wire())), emit)
            finally:
                asking.reset(before)

        return asked

    async def ask(self, name: str, path: str, body: Mapping[str, Any], guard: str) -> dict[str, Any]:
        """The whole answer of a served model's engine on one of its own routes. Raises PenstockError."""
        relay = self.relays.get(name)
        if relay is None:
            raise BadRequest(f"the model {name!r} has no engine that answers {path}")
        now = asking.get(None)
        meter = now.meter if now else None
        if meter and guard:
            meter = meter.of_guard(guard)
        return await whole(relay, path, {**body, **self._salted(body)}, meter)

    def _salted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What a step asks on a caller's behalf shares the prefix cache with that caller's requests alone."""
        now = asking.get(None)
        salt = now.body.get("cache_salt") if now else None
        return {"cache_salt": salt} if salt and not body.get("cache_salt") else {}

    def leaving(self) -> set[str]:
        """What requests run on that new ones do not come to: replicas by their names, adapters as ENGINE/NAME@VERSION.
        Other replicas and adapters than the present ones that are not among them are nobody's."""
        present = {(route.pool.name, route.name) for route in self._routes()}
        for engine, name in self._adapters - present:
            if engine not in self.pools or not is_asked_for(self.pools[engine], name):
                self._adapters.discard((engine, name))
        adapters = {f"{engine}/{name}" for engine, name in self._adapters - present}
        return adapters | {replica.name for pool in self._leaving for replica in pool.replicas}

    def _routes(self) -> list[Route]:
        relays = self.relays.values()
        return [relay.current for relay in relays] + [relay.trial.other for relay in relays if relay.trial]

    def _route(self, name: str, before: Route | None) -> Route:
        """Where a model's requests go now; the same as before where nothing has changed."""
        assert self._config is not None
        model = self._config.models[name]
        adapter = self.versions.adapters[name] if model.adapter else None
        if adapter:
            self._adapters.add((model.engine, adapter))
        route = Route(self.pools[model.engine], adapter, adapter or self.versions.engines.get(model.engine))
        same = before and (before.pool, before.name, before.version) == (route.pool, route.name, route.version)
        return before if before and same else route

    def _served(self, config: Config) -> dict[str, Served]:
        limits = limits_of(config.gateway, self.room)
        before, self.relays, self._config = self.relays, {}, config
        models: dict[str, Served] = {}
        composed = self.compositions.change(config)
        for name, model in config.models.items():
            if config.engines[model.engine].kind == "scripted":
                chat = scripted(Script(**config.engines[model.engine].options))
                models[name] = Answer(name, chat, composed[name], model.budget_tokens)
                continue
            route = self._route(name, before[name].current if name in before else None)
            relay = self.relays[name] = Relay(name, route, limits)
            plain = composed[name] is PLAIN and model.budget_tokens is None
            models[name] = relay if plain else Answer(name, relay, composed[name], model.budget_tokens)
        for name, model in config.models.items():
            if model.fallback and name in self.relays:
                self.relays[name].fallback = models[model.fallback]
        return models

    def _pool(self, name: str, engine: Engine, config: Config) -> Pool:
        pool, served = self.pools.get(name), served_by(config, name)
        replicas = self._local.get(name, ()) if not engine.urls else ()
        for replica in replicas:
            replica.serve(served)
        if pool is None:
            pool = Pool(name, replicas, config.gateway.engine_wait_s, engine.routing)
            if self._config:
                self._coming.add(pool)
            if engine.urls:
                self._elsewhere[name] = elsewhere = Elsewhere(engine, served, pool)
                self._watching[name] = self._beside(elsewhere.run())
            else:
                self._hold(engine, replicas)
            return pool
        pool.change(config.gateway.engine_wait_s, engine.routing)
        if engine.urls:
            self._elsewhere[name].change(engine, served)
        return pool

    def _hold(self, engine: Engine, replicas: Sequence[Replica]) -> None:
        if engine.routing.kv_events:
            self._holding |= {replica: self._beside(keep_holdings(replica)) for replica in replicas}

    def _moved(self, name: str, before: Pool) -> Pool:
        """The engine's replicas are others: new ones, or those of a canary that has done well."""
        tried = self._tried.get(name)
        if tried and set(tried.replicas) == set(self._local[name]):
            pool = self._tried.pop(name)
        else:
            pool = self._over_replicas(name, self._local[name])
        self._end(before)
        return pool

    def _over_replicas(self, name: str, replicas: Sequence[Replica]) -> Pool:
        assert self._config is not None
        engine = self._config.engines[name]
        for replica in replicas:
            replica.serve(served_by(self._config, name))
        self._hold(engine, replicas)
        return Pool(name, replicas, self._config.gateway.engine_wait_s, engine.routing)

    def _end(self, pool: Pool) -> None:
        self._leaving.append(pool)
        self._beside(self._leave(pool))

    async def _leave(self, pool: Pool) -> None:
        """Nothing new comes to it. Looked at twice: between two tries of a request nothing runs there either."""
        linger_s = LINGER_S
        while linger_s:
            await pool.idle()
            await asyncio.sleep(linger_s)
            linger_s = LINGER_S if pool.active else 0.0
        holding = [task for replica in pool.replicas if (task := self._holding.pop(replica, None))]
        for task in holding:
            task.cancel()
        if holding:
            await asyncio.wait(holding)
        self._leaving.remove(pool)
        self.left(pool.replicas)

    def _let_go(self, name: str, pool: Pool) -> None:
        """No model leads there any more; who waits for a turn is yet to come."""
        assert self._config is not None
        longest_s = max((model.queue_s for model in self._config.models.values() if model.engine == name), default=0)
        watching = self._watching.pop(name)
        del self._elsewhere[name]

        async def leave() -> None:
            await asyncio.sleep(longest_s)
            await pool.idle()
            watching.cancel()
            await asyncio.wait([watching])
            for replica in pool.replicas:
                replica.forget()

        self._beside(leave())

    def _beside(self, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = watched(job, self.failed)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return task

    async def close(self) -> None:
        """Whatever still runs here has ended, or been told that it must."""
        await ended(list(self._jobs), self.failed)


def is_asked_for(pool: Pool, name: str) -> bool:
    return any(replica.is_asked_for(name) for replica in pool.replicas)


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Stack]:
    """Everything that is configured, in this process; aliases are not followed, nor adapters given to engines
    elsewhere. Raises StartError for what cannot start."""
    async with (
        engines_here(config) as engines,
        composed(config, engines.replicas, engines.failed, replace(engines.versions, cold=())) as stack,
    ):
        yield stack


@asynccontextmanager
async def composed(
    config: Config,
    local: Mapping[str, Sequence[Replica]],
    failed: asyncio.Future[None],
    versions: Versions = Versions(),
) -> AsyncIterator[Stack]:
    """The served models, over the engines started here (`local`, by name) and those elsewhere, which are watched."""
    stack = Stack(local, failed, versions)
    try:
        stack.change(config)
        yield stack
    finally:
        await stack.close()


def limits_of(gateway: Gateway, room: Room) -> Limits:
    return Limits(gateway.first_byte_timeout_s, gateway.first_token_timeout_s, gateway.stall_timeout_s, room=room)


def scripted(script: Script) -> Scripted:
    return Scripted(script.answers, pace_s=script.pace_s)
