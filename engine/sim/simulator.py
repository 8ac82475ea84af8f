"""The simulated engine as a whole: routes, faults, and what a test can look at."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from engine.sim import extras
from engine.sim.asked import Model, Refused, asked
from engine.sim.cache import PrefixCache
from engine.sim.connection import Connection, Received
from engine.sim.expected import Expected, expected
from engine.sim.faults import Fault, FaultError, read
from engine.sim.figures import CONTENT_TYPE
from engine.sim.generation import SHAPES, Core, Generation, Speed
from engine.sim.listener import Listener
from engine.sim.moves import JSON, Headers, Moves, Raw, Whole
from engine.sim.scheduler import Scheduler
from engine.sim.twists import twisted


class Simulator:
    """An engine, once its `listener` is open.

    `faults` may be changed at any time; `requests` has what was received.
    """

    def __init__(
        self,
        model: Model,
        speed: Speed,
        scheduler: Scheduler,
        cache: PrefixCache,
        faults: Iterable[Fault] = (),
        retry_after_s: int | None = None,
        keep_alive_s: float = 5.0,
        kept_requests: int = 1000,
        host: str = "127.0.0.1",
        port: int = 0,
        uds: Path | str | None = None,
    ) -> None:
        """`retry_after_s`: what a full queue answers with; vLLM's says nothing. `kept_requests`: how many of the last
        are kept in `requests`."""
        self.model = model
        self.core = Core(model, speed, scheduler, cache)
        self.faults = list(faults)
        self.retry_after_s = retry_after_s
        self.keep_alive_s = keep_alive_s
        self.requests: deque[Received] = deque(maxlen=kept_requests)
        self.open: set[Connection] = set()
        self.accepted = 0
        self.listener = Listener(self.connection, self.open, host, port, uds)

    @property
    def url(self) -> str:
        """`http://...` or `unix:/path`."""
        return self.listener.url

    @property
    def running(self) -> int:
        return len(self.core.scheduler.running)

    @property
    def waiting(self) -> int:
        return len(self.core.scheduler.waiting)

    @property
    def started(self) -> int:
        return self.core.started

    @property
    def completed(self) -> int:
        return self.core.completed

    @property
    def aborted(self) -> int:
        return self.core.aborted

    @property
    def connections(self) -> int:
        """Those open now; `accepted` has all there ever were."""
        return len(self.open)

    def expected(self, body: Mapping[str, Any], path: str | None = None, choice: int = 0) -> Expected:
        """What it would say to this body."""
        return expected(body, self.model, path, choice)

    def connection(self) -> Connection:
        return Connection(self.answer, self._refuses, self.open, self.keep_alive_s)

    def _refuses(self) -> bool:
        self.accepted += 1
        return any([fault.refuses() for fault in self.faults])

    def answer(self, request: Received) -> Moves:
        """The moves of an answer, with every fault that strikes laid over it in turn."""
        if request.path.startswith("/sim/"):
            return self._whole(self._control, request)
        self.requests.append(request)
        moves, generation = self._moves(request)
        shape = generation.shape if generation else None
        stream = generation is not None and generation.asked.stream
        if request.method == "HEAD":
            moves = (Raw(move.head) for move in moves if isinstance(move, Whole))
        for fault in [fault for fault in self.faults if fault.strikes(request.path, stream)]:
            moves = twisted(fault, moves, shape)
        return moves

    def _moves(self, request: Received) -> tuple[Moves, Generation | None]:
        if request.method != "POST" or request.path not in SHAPES:
            return self._whole(self._other, request), None
        try:
            generation = self.core.make(asked(request.path, json_of(request), self.model))
        except Refused as refused:
            return only(self._refusal(refused, request.path)), None
        return generation.moves(), generation

    def _whole(self, route: Callable[[Received], Whole], request: Received) -> Moves:
        try:
            return only(route(request))
        except Refused as refused:
            return only(self._refusal(refused, request.path))

    def _refusal(self, refused: Refused, path: str) -> Whole:
        headers: Headers = JSON
        if refused.status == 503 and self.retry_after_s is not None:
            headers = (*JSON, ("retry-after", str(self.retry_after_s)))
        return Whole(refused.status, orjson.dumps(refused.document_for(path)), headers)

    def _other(self, request: Received) -> Whole:
        match request.method, request.path:
            case "GET", "/health":
                return Whole(200, b"", ())
            case "GET", "/metrics":
                return Whole(200, self.core.metrics(), (("content-type", CONTENT_TYPE),))
            case "GET", "/v1/models":
                return document(extras.models(self.model))
            case "GET", "/version":
                return document({"version": "0.32.0"})
            case "POST", "/v1/embeddings":
                return document(extras.embeddings(json_of(request), self.model))
            case "POST", "/v1/unload_lora_adapter" if self.model.adapters.folder:
                return Whole(200, extras.unloaded(json_of(request), self.model).encode(), ())
            case "POST", "/v1/messages/count_tokens":
                return document(extras.counted(json_of(request), self.model))
            case "POST", "/tokenize":
                return document(extras.tokenized(json_of(request), self.model))
            case "POST", "/detokenize":
                return document(extras.detokenized(json_of(request), self.model))
        if request.path in KNOWN:
            return Whole(405, b'{"detail":"Method Not Allowed"}')
        return Whole(404, b'{"detail":"Not Found"}')

    def _control(self, request: Received) -> Whole:
        """GET, PUT and DELETE of /sim/faults."""
        if request.path != "/sim/faults":
            return Whole(404, b'{"detail":"Not Found"}')
        try:
            if request.method == "PUT":
                self.faults[:] = revocable([read(item) for item in listed(json_of(request))])
            elif request.method == "DELETE":
                self.faults.clear()
            elif request.method != "GET":
                return Whole(405, b'{"detail":"Method Not Allowed"}')
        except FaultError as error:
            raise Refused(400, str(error), "faults") from error
        return document([fault.document() for fault in self.faults])


KNOWN = {
    *SHAPES, "/health", "/metrics", "/v1/models", "/version", "/v1/embeddings", "/tokenize", "/detokenize",
    "/v1/messages/count_tokens",
}  # fmt: skip


def only(move: Whole) -> Moves:
    yield move


def document(tree: Any) -> Whole:
    return Whole(200, orjson.dumps(tree))


def json_of(request: Received) -> Any:
    try:
        return request.body
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"1 validation error:\n  JSON decode error: {error}", "body", "Bad Request") from error


def listed(tree: Any) -> list[Any]:
    if not isinstance(tree, list):
        raise FaultError('faults are a list, such as [{"kind": "cut", "after": 5}]')
    return tree


def revocable(faults: list[Fault]) -> list[Fault]:
    """Raises FaultError for one that would shut out the request that ends it."""
    for fault in faults:
        if fault.kind == "refuse" and fault.times is None and fault.for_s is None:
            raise FaultError("refuse shuts out the request that would end it: give `times` or `for_s`")
    return faults
