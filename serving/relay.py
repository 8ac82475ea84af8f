"""A served model without steps: a request passes to an engine and the answer back, byte for byte.

Nothing goes out before the answer has content, so whatever fails until then is mended elsewhere or becomes a clean
status. A stream that breaks later is continued by another replica where that is exact, and otherwise ends in an error
event: never silently, never with a `[DONE]` it did not earn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from engine.affinity import hint_of
from engine.asked import Asked, DeadlineOver, Limits, Source
from engine.connection import Answer
from engine.continuation import is_exact
from engine.dispatch import Dispatch
from engine.reading import CHAT, TEXT
from engine.route import Route
from engine.tokens import tokens_of
from penstock import metrics
from penstock.chat import Chat
from penstock.errors import BadRequest, EngineError, PenstockError
from serving.exchange import Exchange, Headers
from serving.fields import PROMPTED
from serving.forwarded import DEADLINE, deadline_of, forwarded
from serving.ledger import Cost
from serving.meter import Meter
from serving.split import SESSION
from serving.surfaces import usage_wanted
from serving.trial import Trial
from serving.upstream import Upstream
from serving.wire import EVENT_STREAM, JSON, Dialect

if TYPE_CHECKING:
    from serving.stack import Served

OPENAI_STREAMS = frozenset({CHAT, TEXT})
CONTINUABLE = (b"x-penstock-continuable", b"1")


class Relay:
    """`fallback` answers what this engine cannot, as long as nothing of an answer is out. `current` is where new
    requests go, but for those of a canary's `trial`; both may be others at any moment, and what runs ends where it
    began."""

    trial: Trial | None = None

    def __init__(self, name: str, current: Route, limits: Limits, fallback: "Served | None" = None) -> None:
        self.name = name
        self.current = current
        self.limits = limits
        self.fallback = fallback

    def route(self, exchange: Exchange, body: Mapping[str, Any]) -> Route:
        """The one for this request: the same whenever it is asked for, until the routes are others."""
        trial = self.trial
        return self.current if trial is None else trial.route(self.current, exchange, body)

    def chat(self, exchange: Exchange, body: Mapping[str, Any], meter: Meter, *, own: bool = True) -> Chat:
        """The same engine for the steps of a composed model, which ask it in turns, for one request; not its `own`
        where a step of another model asks for it."""
        return Upstream(self, exchange, body, meter, own=own)

    @property
    def version(self) -> str | None:
        """The registered one that new requests go to."""
        return self.current.version

    async def __call__(self, exchange: Exchange, body: Mapping[str, Any], dialect: Dialect) -> None:
        await Relayed(self, exchange, body, dialect).run()


class Relayed:
    """One request on its way through. Raises BadRequest for what can be seen to be wrong before it is sent."""

    def __init__(self, relay: Relay, exchange: Exchange, body: Mapping[str, Any], dialect: Dialect) -> None:
        if "prompt" in body and exchange.path in PROMPTED and body["prompt"]:
            raise BadRequest(
                f"prompt: the engine of {relay.name!r} would ignore it: ask a model with the step `prompt`",
                param="prompt",
            )
        hide_usage = exchange.path in OPENAI_STREAMS and bool(body.get("stream")) and not usage_wanted(body)
        self.body = body
        self.route = route = relay.route(exchange, body)
        if hide_usage:
            body = {**body, "stream_options": {**(body.get("stream_options") or {}), "include_usage": True}}
        written = as_json(body)
        hint = hint_of(body, exchange.headers.get(SESSION))
        self.relay = relay
        self.exchange = exchange
        self.dialect = dialect
        deadline = deadline_of(exchange) if DEADLINE in exchange.headers else math.inf
        self.asked = Asked(
            exchange.path, body, forwarded(exchange), hint, deadline, written, hide_usage=hide_usage, name=route.name
        )
        exchange.cost = Cost(self.asked, route.pool, beside=exchange.cost.meter if exchange.cost else None)
        if relay.trial:
            exchange.cost.tally = relay.trial.tally(route)
        self.passing = Passing(exchange, dialect, self.asked, exchange.cost, route)
        self.dispatch = Dispatch(route.pool, self.asked, self.passing, relay.limits, relay.name)
        self._tell: Tell | None = None

    def start(self, tell: "Tell") -> bool:
        """Sends the request, if nothing has to be waited for but its answer; else False.

        `tell` is told how it ended: what is an EngineError, `run` may still mend.
        """
        if self.route.pool.routing.kv_events:
            return False
        self._tell = tell
        return self.dispatch.start(self._told)

    def _told(self, answer: Answer | None, error: PenstockError | None) -> None:
        tell, self._tell = self._tell, None
        failure: Exception | None = error
        try:
            if answer:
                self._send(answer)
        except Exception as unexpected:
            failure = unexpected
        if tell:
            tell(failure)

    def cancel(self) -> None:
        """Ends what `start` began."""
        self._tell = None
        self.dispatch.cancel()

    async def run(self, failure: EngineError | None = None) -> None:
        """Answers, however often it takes. `failure`: how it ended what `start` began. Raises PenstockError."""
        relay, exchange = self.relay, self.exchange
        if self.route.pool.routing.kv_events:
            self.asked.hint.token_ids = await self._tokens()
        if failure is None:
            self._go_by(relay.route(exchange, self.body))
        try:
            answer = await self.dispatch.run(failure)
        except EngineError as error:
            if relay.fallback is None or exchange.status is not None or isinstance(error, DeadlineOver):
                raise
            metrics.fallbacks.inc(relay.name, relay.fallback.name)
            if self.passing.cost.tally:
                self.passing.cost.tally.failed(self.passing.cost, error)
            exchange.marks = [*exchange.marks, (b"x-penstock-fallback", relay.fallback.name.encode())]
            body = {**self.body, "model": relay.fallback.name}
            return await relay.fallback(exchange, body, self.dialect)
        if answer:
            self._send(answer)

    def _go_by(self, route: Route) -> None:
        """Nothing has been asked yet. It may have waited, and the route that was chosen then may lead nowhere now."""
        if route is not self.route:
            self.route = self.passing.route = route
            self.asked.name = route.name
            self.passing.cost.pool = route.pool
            self.passing.cost.tally = self.relay.trial.tally(route) if self.relay.trial else None
            self.dispatch = Dispatch(route.pool, self.asked, self.passing, self.relay.limits, self.relay.name)

    def _send(self, answer: Answer) -> None:
        self.passing.cost.usage = answer.usage
        self.exchange.version = self.route.version
        headers = [*self.route.marks, *self.dialect.headers(self.exchange.request_id)]
        self.exchange.send(200, [*JSON, *headers] if headers else JSON, answer.body)

    async def _tokens(self) -> Sequence[int]:
        """The prompt as the engines' own tokens; none where nobody says, so that the approximate index decides."""
        replica = next((replica for replica in self.route.pool.replicas if replica.usable), None)
        if replica is None:
            return ()
        try:
            return await tokens_of(self.asked, replica)
        except EngineError:
            return ()


Tell = Callable[[Exception | None], None]


class Passing:
    """The receiver of a stream that goes to the client as it is."""

    def __init__(self, exchange: Exchange, dialect: Dialect, asked: Asked, cost: Cost, route: Route) -> None:
        self.exchange = exchange
        self.dialect = dialect
        self.asked = asked
        self.cost = cost
        self.route = route
        self.more = exchange.write
        self.end = exchange.end

    @property
    def source(self) -> Source | None:
        return self.exchange.source

    @source.setter
    def source(self, source: Source | None) -> None:
        self.exchange.source = source

    def begin(self, data: bytes) -> None:
        self.exchange.version = self.route.version
        headers: Headers = [*EVENT_STREAM, *self.route.marks, *self.dialect.headers(self.exchange.request_id)]
        if is_exact(self.asked.path, self.asked.body):
            headers = [*headers, CONTINUABLE]
        self.exchange.start(200, headers)
        if data:
            self.exchange.write(data)

    def used(self, usage: Mapping[str, Any] | None, texts: Sequence[Sequence[str]]) -> None:
        self.cost.usage, self.cost.texts = usage, texts


def as_json(body: Mapping[str, Any] | list[Any], option: int | None = None) -> bytes:
    """What was checked, written anew; `option` is orjson's. Raises BadRequest for what can be read but is too deep to
    be written."""
    try:
        return orjson.dumps(body, option=option)
    except TypeError as error:
        raise BadRequest("the body is nested too deeply: 254 levels at most") from error
