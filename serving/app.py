"""What happens around every request: key, body, policy, limits, served model, errors, usage, the access log.

An ASGI application. A handler sees only an `Exchange`: the generation routes are carried by the connection itself
(`serving/protocol.py`), everything else, and in tests these too, by ASGI.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import orjson

from engine.affinity import hint_of
from penstock import metrics
from penstock.callers import UNLIMITED, Caller
from penstock.chat import Usage
from penstock.config import Config
from penstock.config import nearest as nearest_name
from penstock.errors import (
    BodyTooLarge,
    BodyTooSlow,
    EngineError,
    EngineUnavailable,
    Forbidden,
    GuardFailed,
    MethodNotAllowed,
    ModelNotFound,
    PenstockError,
    UnknownUrl,
)
from penstock.keyring import digest
from penstock.log import request_id
from penstock.meters import Snapshot
from serving import bodies
from serving.access import access
from serving.admission import Admission, Ticket, sharing
from serving.call import Call, id_of
from serving.composing import PLAIN
from serving.estimates import Estimate, estimate
from serving.exchange import AsgiExchange, Exchange, Receive, Scope, Send, nothing
from serving.fields import MODERATIONS, STEPS
from serving.forwarded import DEADLINE, deadline_of
from serving.keys import Keys, require
from serving.ledger import Cost, Ledger, tokens_of_both
from serving.models import Known
from serving.moderations import USUAL
from serving.policy import Policy, Unfetched
from serving.relay import Relay, Relayed, as_json
from serving.replays import Replays
from serving.routes import HOT_PATHS, MODEL_PREFIX, ONE_MODEL, ROUTES, Route, dialect_of, route_name
from serving.stack import Served, Stack
from serving.wire import JSON, Dialect

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5


class Gateway:
    """Created before its engines run; `stack` is set once they are being started."""

    def __init__(self, config: Config, keys: Keys | None = None, ledger: Ledger | None = None) -> None:
        self.config = config
        self.hot_paths = HOT_PATHS
        self.keys = keys or Keys(config.gateway.keys)
        self.policy = Policy(config.policy, self.keys.pepper)
        self.admission = Admission(config, sharing(config.state), ledger.store if ledger else None)
        self.keys.learned = self.admission.learned
        self.replays = Replays(config)
        self.stack: Stack | None = None
        self.ledger = ledger
        self.draining = False
        self.ended = False
        self.began = int(time.time())
        self.document = b""  # its OpenAPI document, once somebody has asked
        self.figures: Callable[[], Awaitable[Snapshot]] = own_figures
        self._calls: set[Call] = set()

    def apply(self, config: Config) -> None:
        """From the next request on; those that run end on what they began with. Nothing here waits or fails: that
        `config` can be served is known (`serving/reload.py`)."""
        if self.stack:
            self.stack.change(config)
        before, self.config, self.document = self.config, config, b""
        if config.gateway.keys != before.gateway.keys:
            self.keys.configure(config.gateway.keys)
        if config.policy != before.policy:
            self.policy = Policy(config.policy, self.keys.pepper)
        self.admission.change(config.models)
        self.replays.change(before, config)

    def end_requests(self) -> None:
        """Ends what still runs, each with an error that says why: the shutdown waits no longer."""
        self.ended = True
        for call in list(self._calls):
            if not call.exchange.response_complete:
                call.error = shutting_down()
                self.stop(call)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3. A path of another protocol than HTTP is closed without an answer."""
        if scope["type"] == "http":
            exchange = AsgiExchange(scope, receive, send, self.config.gateway.stall_timeout_s)
            await exchange.carry(self.answer)

    async def answer(self, exchange: Exchange) -> None:
        """Serves one request, from its first header to the access log."""
        call = self._entered(exchange)
        await self._awaited(call, self._serve(call))

    def take(self, exchange: Exchange) -> asyncio.Task[None] | None:
        """The same without waiting: what is whole and to be relayed is sent on at once, and its answer when it comes.

        Returns the task that serves what cannot be served so. A task costs more than all that a relay does.
        """
        call = self._entered(exchange)
        if exchange.gone:
            self._left(call)
            return None
        try:
            work = self._begun(call)
        except Exception as error:
            call.relayed = None
            self._failed(call, error)
            self._left(call)
            return None
        return asyncio.get_running_loop().create_task(self._awaited(call, work)) if work else None

    def _begun(self, call: Call) -> Coroutine[Any, Any, None] | None:
        """What is left to be awaited, if anything is."""
        exchange = call.exchange
        if self.ended:  # one that waited behind another on its connection
            raise shutting_down()
        if not exchange.is_whole:
            return self._serve(call)
        route = self._admitted(call)
        if route.control:
            return route.control(self, call)
        served, body = self._asked(call, route, exchange.whole(self.config.gateway.max_body_bytes))
        if not isinstance(served, Relay) or isinstance(body, Unfetched) or self.replays.concern(exchange, body):
            return self._answered(call, served, body, route.dialect)
        call.relayed = relayed = Relayed(served, exchange, body, route.dialect)
        if self.admission.limits(call.caller, call.model):
            tokens = estimate(exchange.path, body, relayed.asked.hint.prompt_tokens)
            ticket = self.admission.try_enter(call.caller, call.model, tokens)
            if ticket is None:
                call.relayed = None
                return self._let_in(call, tokens, relayed.run)
            self._is_in(call, ticket)
        if relayed.start(call.told):
            return None
        call.relayed = None
        return relayed.run()

    def _answered(
        self, call: Call, served: Served, body: dict[str, Any], dialect: Dialect
    ) -> Coroutine[Any, Any, None]:
        """By what was answered before, where the caller or the configuration wants that."""
        cached = isinstance(served, Relay) or (served.composition is PLAIN and not served.chosen)
        if not self.replays.concern(call.exchange, body, cached=cached):
            return self._served(call, served, body, dialect)
        generate = partial(self._apart, call, served, body, dialect)
        version = served.route(call.exchange, body).version if isinstance(served, Relay) else None
        chosen = b"" if isinstance(served, Relay) else served.chosen
        return self.replays.serve(call.exchange, call.caller, body, dialect, generate, version, chosen, cached=cached)

    async def _apart(
        self, call: Call, served: Served, body: dict[str, Any], dialect: Dialect, exchange: Exchange
    ) -> None:
        """For all who wait for it, on `exchange`: it has a place of its own, and costs who asked first."""
        if exchange is call.exchange:  # nobody else may have this answer
            return await self._served(call, served, body, dialect)
        exchange.tenant, exchange.caller = call.exchange.tenant, call.exchange.caller
        apart = Call(self, exchange, call.name, call.caller, call.model)
        cut = True
        try:
            await self._served(apart, served, body, dialect)
            cut = False
        except asyncio.CancelledError:  # they have all left
            exchange.gone, cut = True, False
            raise
        except PenstockError as error:
            apart.error = error
            raise
        finally:
            self._settle(apart, cut=cut)

    def _served(self, call: Call, served: Served, body: dict[str, Any], dialect: Dialect) -> Coroutine[Any, Any, None]:
        """The request answered, once limits have room for it; until then nothing is fetched for it either."""
        exchange = call.exchange
        work: Callable[[], Coroutine[Any, Any, None]] = partial(served, exchange, body, dialect)
        to_come = 0
        if isinstance(body, Unfetched):
            work = partial(self._with_media, served, exchange, body, dialect)
            to_come = body.tokens
        if not self.admission.limits(call.caller, call.model):
            return work()
        as_json(body)  # or refused: what is nested too deeply cannot be weighed either
        tokens = estimate(exchange.path, body, hint_of(body).prompt_tokens + to_come)
        return self._let_in(call, tokens, work)

    async def _let_in(self, call: Call, tokens: Estimate, work: Callable[[], Awaitable[None]]) -> None:
        exchange = call.exchange
        deadline = deadline_of(exchange) if DEADLINE in exchange.headers else math.inf
        try:
            self._is_in(call, await self.admission.enter(call.caller, call.model, tokens, deadline))
        except BaseException:
            exchange.cost = None  # no engine was asked
            raise
        await work()

    def _is_in(self, call: Call, ticket: Ticket) -> None:
        call.ticket = ticket
        ticket.progress = call.came
        self._mark(call)

    def _mark(self, call: Call) -> None:
        """The answer will tell a limited caller how its limits stand, once."""
        exchange = call.exchange
        if call.caller.quota is not UNLIMITED:
            others = [mark for mark in exchange.marks if not mark[0].startswith(b"x-ratelimit-")]
            exchange.marks = [*others, *self.admission.marks(call.caller)]

    def told(self, call: Call, error: Exception | None) -> None:
        """How a relayed request ended: another try, a fallback or the rest of a stream may mend it."""
        relayed, call.relayed = call.relayed, None
        if relayed and isinstance(error, EngineError):
            asyncio.get_running_loop().create_task(self._awaited(call, relayed.run(error)))
            return
        if error:
            self._failed(call, error)
        self._left(call)

    def _entered(self, exchange: Exchange) -> Call:
        exchange.request_id = id_of(exchange.headers)
        call = Call(self, exchange, route_name(exchange.path))
        exchange.on_gone = call.gone
        self._calls.add(call)
        metrics.in_flight.inc()
        return call

    async def _awaited(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        """What of a request has to be waited for: a client that leaves, or the end of the shutdown's patience, cancels
        it, or before it has begun keeps it from beginning."""
        token = request_id.set(call.exchange.request_id)
        call.task = asyncio.current_task()  # not before it runs: one that is cancelled sooner never does
        try:
            if call.exchange.gone or call.error:
                work.close()
            else:
                await work
        except asyncio.CancelledError:
            if not call.exchange.gone and call.error is None:
                raise
        except Exception as error:
            self._failed(call, error)
        finally:
            self._left(call)
            request_id.reset(token)

    def stop(self, call: Call) -> None:
        """The client has left, or the shutdown's patience is over."""
        if call.task:
            call.task.cancel()
        elif call.relayed:
            call.relayed.cancel()
            call.relayed = None
            self._left(call)

    async def _serve(self, call: Call) -> None:
        """A request whose body may be yet to come."""
        exchange = call.exchange
        route = self._admitted(call)
        if route.control:
            return await route.control(self, call)
        limits = self.config.gateway
        served, body = self._asked(call, route, await exchange.body(limits.max_body_bytes, limits.receive_timeout_s))
        await self._answered(call, served, body, route.dialect)

    async def _with_media(self, served: Served, exchange: Exchange, body: Unfetched, dialect: Dialect) -> None:
        """The engine is given the media that the body only has the addresses of."""
        await served(exchange, await self.policy.fetched(body), dialect)

    def _admitted(self, call: Call) -> Route:
        """Raises PenstockError for what is not served, or not to this caller."""
        route = self._route(call.exchange)
        if not route.open:
            call.caller = self.keys.check(call.exchange.headers)
            if route.scope:
                require(call.caller, route.scope)
        return route

    def _asked(self, call: Call, route: Route, raw: bytes) -> tuple[Served, dict[str, Any]]:
        assert route.shape is not None
        body = bodies.parse(raw, route.shape)
        body = self.policy.applied(call.exchange.path, body, call.caller)
        if call.exchange.path == MODERATIONS:
            served: Served = self._moderation(body.get("model") or USUAL, call.caller)
        else:
            served = self.model(body["model"], call.caller)
        if STEPS in body:
            served = self._with_steps(served, body.pop(STEPS), call.caller)
        call.model = served.name
        call.exchange.tenant = call.caller.tenant
        call.exchange.caller = call.caller
        if (call.caller.guards or self.config.gateway.guards) and call.exchange.path != MODERATIONS:
            served = self._guarded(served, call.caller)
        return served, body

    def _with_steps(self, served: Served, override: Mapping[str, Any] | None, caller: Caller) -> Served:
        """With the steps that the request itself has chosen; nothing else ever sees that field."""
        if not override:
            return served
        assert self.stack is not None
        return self.stack.with_steps(served, override["steps"], caller)

    def _moderation(self, name: str, caller: Caller) -> Served:
        """A policy, as what is asked. Raises ModelNotFound, Forbidden."""
        assert self.stack is not None
        if caller.models is not None and name not in caller.models:
            raise Forbidden(f"this key may not use {name!r}, only {', '.join(sorted(caller.models))}", param="model")
        if name not in self.config.guards:
            near = nearest_name(name, self.config.guards)
            raise ModelNotFound(
                f"no guards are configured as {name!r}{near}: `model` names a list in `guards`", param="model"
            )
        return self.stack.moderation(name)

    def _guarded(self, served: Served, caller: Caller) -> Served:
        """The same behind the policies of this caller, and of the gateway. Raises GuardFailed for one that the
        configuration lacks: whose requests are to be looked at is not served without that."""
        assert self.stack is not None
        if caller.guards and caller.guards not in self.config.guards:
            log.error(
                "the key %s names the guards %r, which are not configured: it is refused", caller.id, caller.guards
            )
            raise GuardFailed(
                f"this key's guards, {caller.guards}, are not configured here: tell whoever runs this gateway"
            )
        names = self._around(served.name, caller)
        return self.stack.guarded(served, names) if names else served

    def _around(self, name: str, caller: Caller) -> tuple[str, ...]:
        """The policies around a model that are not its own."""
        model = self.config.models.get(name)
        wanted = [name for name in (self.config.gateway.guards, caller.guards) if name]
        return tuple(name for name in dict.fromkeys(wanted) if model is None or name != model.guards)

    def _route(self, exchange: Exchange) -> Route:
        path = exchange.path
        route = ROUTES.get(path) or (ONE_MODEL if path.startswith(MODEL_PREFIX) else None)
        if route is None:
            raise UnknownUrl(f"there is no route {path}{nearest_name(path, list(ROUTES))}")
        if exchange.method != route.method:
            raise MethodNotAllowed(f"{path} takes {route.method}, not {exchange.method}", allow=route.method)
        return route

    def model(self, name: str, caller: Caller) -> Served:
        assert self.stack is not None
        if caller.models is not None and name not in caller.models:
            raise Forbidden(f"this key may not use {name!r}, only {', '.join(sorted(caller.models))}", param="model")
        served = self.stack.models.get(name)
        if served is None:
            near = nearest_name(name, self.models_for(caller))
            raise ModelNotFound(f"the model {name!r} is not served here{near} (GET /v1/models)", param="model")
        return served

    def known(self, name: str, caller: Caller) -> Known:
        """What a caller is told of a served model. Its makings are under the pepper, so that they cannot be guessed."""
        assert self.stack is not None
        around = [guards for guards in self._around(name, caller) if guards in self.config.guards]
        makings = self.stack.makings(name, around)
        composition = digest(self.keys.pepper, f"makings\n{makings}".encode())[:8].hex() if makings else None
        return Known(self.stack.models[name].version, composition)

    def models_for(self, caller: Caller) -> list[str]:
        assert self.stack is not None
        return [name for name in self.stack.models if caller.models is None or name in caller.models]

    def _failed(self, call: Call, error: Exception) -> None:
        """Whatever it is, the caller gets an answer in its own shape, and the log the trace."""
        if isinstance(error, PenstockError):
            call.error = error
            return
        with logged_as(call.exchange):
            log.exception("unexpected error", exc_info=error)
        call.error = PenstockError("something went wrong here; the request's id leads to the log")
        call.error.__cause__ = error

    def _left(self, call: Call) -> None:
        """The request is over: refused, if it is yet to be told so, then counted and logged."""
        exchange = call.exchange
        exchange.on_gone = nothing
        self._calls.discard(call)
        if call.error and not call.ticket:
            self._mark(call)
        self._settle(call, cut=call.error is not None)
        if call.error and not exchange.gone:
            interrupted = exchange.status == 200
            refuse(exchange, dialect_of(exchange), call.error)
            if interrupted:
                metrics.interrupted.inc(call.model)
                with logged_as(exchange):
                    log.error("stream ended in an error event: %s", call.error)
        metrics.in_flight.inc(by=-1)
        access.ended(
            exchange.request_id,
            exchange.method,
            call.name,
            call.model,
            exchange.status or 499,
            time.perf_counter() - call.began,
            exchange.first_byte_at - call.began if exchange.first_byte_at is not None else None,
            call.error.code or call.error.type if call.error else None,
            exchange.gone,
            exchange.verdicts,
        )

    def _settle(self, call: Call, *, cut: bool) -> None:
        """Its place is free, and what it has cost is known. What was given again has cost nothing."""
        exchange = call.exchange
        cost, exchange.cost = exchange.cost, None
        asked = cost if cost and cost.sent and (exchange.status == 200 or exchange.gone or owed(cost, call)) else None
        tokens = 0
        try:
            if cost and cost.tally and (call.error or not cut) and not self.ended:
                cost.tally.note(cost, exchange, call.error, call.began)
            if asked and call.ticket:
                tokens = tokens_of_both(asked)
            if self.ledger and asked:
                self.ledger.note(call.caller, call.model, asked, gone=exchange.gone, cut=cut)
        finally:
            if call.ticket:
                call.ticket.leave(tokens)


def owed(cost: Cost, call: Call) -> bool:
    """Whether a composed model's engine has worked for what then could not be answered, through no fault of its own."""
    return cost.meter is not None and cost.meter.told()[0] != Usage() and not isinstance(call.error, EngineError)


@contextmanager
def logged_as(exchange: Exchange) -> Iterator[None]:
    """What is logged in here bears the request's id."""
    token = request_id.set(exchange.request_id)
    try:
        yield
    finally:
        request_id.reset(token)


async def own_figures() -> Snapshot:
    """What this process has counted; with workers, their parent's sum takes its place."""
    return metrics.snapshot()


def shutting_down() -> EngineUnavailable:
    return EngineUnavailable("this gateway is shutting down; try again", retry_after_s=RETRY_AFTER_S)


def refuse(exchange: Exchange, dialect: Dialect, error: PenstockError) -> None:
    """The error as a status while nothing is out, else as the stream's last event."""
    if exchange.status is not None:
        before = exchange.failing(error) if exchange.failing else b""
        return exchange.end(before + dialect.error_event(error, exchange.request_id))
    headers = [*JSON, *dialect.headers(exchange.request_id)]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, BodyTooLarge | BodyTooSlow):
        headers.append((b"connection", b"close"))
    exchange.send(error.status, headers, orjson.dumps(dialect.error(error, exchange.request_id)))
