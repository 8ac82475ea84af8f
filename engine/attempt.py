"""One try of one request at one replica: sends it, holds the answer back until it has content, then passes it on.

Until the first content nothing has left this process, so whatever goes wrong is an error that another try can mend.
From then on what is good is given to the receiver as it comes, and what is not ends the try.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from time import monotonic  # the event loop's clock
from typing import Any

from engine.asked import Asked, DeadlineOver, Limits, NoFirstByte, Outrun, Receiver
from engine.connection import Answer, Connection, ConnectionBroke
from engine.failures import from_answer, says_it_is_dead
from engine.reading import OpenAIReading, Reading, reading_of
from engine.replica import Replica
from engine.whole import check_whole
from penstock import metrics
from penstock.errors import (
    BadRequest,
    EngineError,
    EngineTimeout,
    Overloaded,
    PenstockError,
    RateLimited,
    StreamInterrupted,
)

log = logging.getLogger(__name__)

# After the stream's last event the engine has this long to end its answer, or the connection is given up.
LINGER_S = 1.0
# A connection that the engine closed while it was idle breaks at once; later it was the request.
STALE_S = 0.5
MAX_HELD_BYTES = 2**20
# What a try may hold without being counted with the others: most answers are smaller.
LIGHT_BYTES = 2**16
RETRY_AFTER_S = 1
# The engine knows one prompt; the routes have other names for it.
PROMPT_FIELDS = {"/v1/completions": "prompt", "/v1/responses": "input"}


class Attempt:
    """A sink of its connection. What becomes of it is told once: a whole answer, None after a stream, or an error.

    It tells the replica too: its load, its breaker, whether it has to be looked at. The replica calls `look`.
    """

    begun = False
    sent = False
    reading: Reading | None = None
    due = math.inf
    _tell: "Told | None" = None
    _trial = False
    _connection: Connection | None = None
    _reused = False
    _asked_at = 0.0
    _suspicious = False
    _waits_for = "answer"
    _lively = False
    _paused = False
    _over = False
    _forsaken = False
    _status = 0
    _held_bytes = 0
    _weighed_bytes = 0
    _head: Mapping[bytes, bytes]

    def __init__(
        self,
        asked: Asked,
        replica: Replica,
        receiver: Receiver,
        limits: Limits,
        may_begin: Callable[["Attempt"], bool] | None = None,
    ) -> None:
        """`may_begin` decides between tries that run side by side which one's answer goes out."""
        self.asked = asked
        self.replica = replica
        self.receiver = receiver
        self.limits = limits
        self._may_begin = may_begin
        self._more = receiver.more
        self._held: list[bytes] = []

    def start(self, tell: "Told") -> None:
        """Sends the request. The error is what the engine says as a PenstockError; EngineTimeout, EngineUnavailable or
        another EngineError."""
        self._tell = tell
        replica = self.replica
        self._trial = replica.take(self.asked.hint.tokens)
        replica.watch(self)
        connection = replica.client.idle()
        if connection is None:
            self._connect()
        else:
            self._reused = True
            self._ask(connection)

    async def run(self) -> Answer | None:
        """The same for somebody who waits: returns the answer or raises the error; cancelled, it is cancelled too."""
        outcome: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()

        def told(_: Attempt, answer: Answer | None, error: PenstockError | None) -> None:
            if outcome.done():
                return
            if error:
                outcome.set_exception(error)
            else:
                outcome.set_result(answer)

        try:
            self.start(told)
            return await outcome
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Nobody waits for it any more; it says nothing about the replica."""
        if self._tell:
            self._tell = None
            self._settle(None, decided=False)
            self._stop()

    def _end(self, answer: Answer | None, error: PenstockError | None) -> None:
        tell = self._tell
        if tell:
            self._tell = None
            self._settle(error, decided=not isinstance(error, DeadlineOver | Outrun))
            tell(self, answer, error)

    def _settle(self, error: PenstockError | None, *, decided: bool) -> None:
        """What it tells of the replica, and the receiver of what it has cost."""
        if self.begun and self.reading:
            self.receiver.used(self.reading.usage, self.reading.texts)
        replica = self.replica
        breaker = replica.breaker
        if not decided or isinstance(error, RateLimited):
            pass
        elif isinstance(error, EngineError):
            breaker.failed(self._trial)
            if self._suspicious:
                replica.suspect()
        else:
            breaker.succeeded()
        if self._trial:
            breaker.undecided()  # unless it was decided above
        replica.give_back(self.asked.hint.tokens)
        if self._weighed_bytes:
            self.limits.room.give_back(self._weighed_bytes)
            self._weighed_bytes = 0

    @property
    def came(self) -> int:
        return sum(map(len, self.reading.texts)) if self.reading else 0

    @property
    def heard(self) -> bool:
        """Whether the replica has answered anything, and may be working on it still."""
        return self._status != 0 and not self._forsaken

    def _connect(self) -> None:
        self._connecting = asyncio.get_running_loop().create_task(self._connected())

    async def _connected(self) -> None:
        client = self.replica.client
        try:
            connection = await client.connect()
            if self._tell:
                self._ask(connection)
            else:  # given up meanwhile: the next may have it
                client.keep(connection)
        except EngineError as error:
            self._suspicious = True
            self._fail(error)
        except Exception as error:  # nobody awaits this task: without an end the request would wait for ever
            failure = EngineError("the request could not be sent to the engine")
            failure.__cause__ = error
            log.error("%s: %s", self.replica.name, failure, exc_info=error)
            self._fail(failure)

    def _ask(self, connection: Connection) -> None:
        asked = self.asked
        replica = self.replica
        self._connection = connection
        self._asked_at = now = monotonic()
        due = now + (self.limits.first_byte_s if asked.streamed else self.limits.first_token_s)
        self.due = due if due < asked.deadline else asked.deadline
        self.sent = asked.sent = True
        connection.send(replica.client.request("POST", asked.path, asked.bytes_for(replica), asked.headers), self)

    def pause(self) -> None:
        """Whoever receives is slow: so will the engine be, and its silence is none."""
        if self._connection and not self._over:
            self._paused = True
            self.due = self.asked.deadline
            self._connection.pause()

    def resume(self) -> None:
        if self._connection and not self._over:
            self._paused = False
            self._wait_for("more", self.limits.stall_s)
            self._connection.resume()

    def look(self, now: float) -> None:
        """Ten times a second, by the loop's clock: a look at the time for every piece of a stream would cost more."""
        if self._lively and not self._paused:
            self._lively = False
            self._wait_for("more", self.limits.stall_s)
        if now >= self.due:
            self._late(now)

    def forsake(self, why: str) -> None:
        """Its replica is known to be gone: ends a try of which nothing is out yet, so that another can be made."""
        if not self.begun:
            self._forsaken = True
            self._fail(EngineError(why))

    def _late(self, now: float) -> None:
        if self._over:
            return self._stop()
        if now >= self.asked.deadline:
            return self._fail(DeadlineOver())
        self._suspicious = True
        self._fail(self._too_late())

    def _too_late(self) -> EngineError:
        match self._waits_for:
            case "answer" if self.asked.streamed:
                return NoFirstByte(f"the engine did not begin to answer within {self.limits.first_byte_s:g} s")
            case "answer" | "token":
                return EngineTimeout(f"the engine was silent for {self.limits.first_token_s:g} s")
        return EngineTimeout(f"the engine was silent for {self.limits.stall_s:g} s")

    def answered(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self._status, self._head = status, headers
        if status == 200 and headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            if not self.asked.streamed:
                return self._fail(EngineError("the engine streams what was to be one answer"))
            self.reading = reading_of(self.asked.path, self.asked.body, hide_usage=self.asked.hide_usage)
            self._wait_for("token", self.limits.first_token_s)

    def received(self, data: bytes) -> None:
        if self._over:
            return
        reading = self.reading
        if reading is None:
            return self._hold(data, self.limits.answer_bytes if self._status == 200 else MAX_HELD_BYTES)
        good = reading.feed(data)
        if reading.over or reading.failure or not self.begun:
            return self._turn(reading, good)
        self._lively = True
        if good:
            self._more(good)

    def _turn(self, reading: Reading, good: bytes) -> None:
        """The stream begins, ends or fails."""
        if not self.begun:
            self._hold(good, MAX_HELD_BYTES)
            if reading.began and not reading.failure and self._tell:
                self._begin()
        elif good and not reading.over:
            self._more(good)
        if reading.failure:
            self._suspicious = says_it_is_dead(reading.failure)
            return self._fail(reading.failure)
        if reading.over and self._tell:
            self._finish(good)
        elif self.begun and not self._paused:
            self._wait_for("more", self.limits.stall_s)

    def _hold(self, data: bytes, limit_bytes: int) -> None:
        if data:
            self._held.append(data)
            self._held_bytes += len(data)
        if self._held_bytes > limit_bytes:
            self._fail(EngineError(f"the engine's answer is larger than {limit_bytes} bytes"))
        elif self._held_bytes > LIGHT_BYTES:
            self._weigh()

    def _weigh(self) -> None:
        """No other replica is asked instead: its answer would be as large."""
        more, self._weighed_bytes = self._held_bytes - self._weighed_bytes, self._held_bytes
        if not self.limits.room.take(more):
            metrics.shed.inc(str(self.asked.body.get("model")), "memory")
            self._fail(
                Overloaded(
                    "there is no room for an answer of this size beside those that others wait for or have not read; "
                    f"try again in {RETRY_AFTER_S} s (gateway.max_answers_bytes)",
                    retry_after_s=RETRY_AFTER_S,
                )
            )

    def _begin(self) -> None:
        if self._may_begin and not self._may_begin(self):
            return self._fail(Outrun())
        self.begun = True
        self.replica.breaker.began()
        self.receiver.source = self
        if self.reading and not self.reading.over:
            self.receiver.begin(b"".join(self._held))
            self._held.clear()
        else:
            self.receiver.begin(b"")

    def _finish(self, last: bytes) -> None:
        """The stream is whole. The connection is kept if the engine ends its answer soon."""
        if not self.begun:
            self._begin()
            if self._tell is None:
                return
        self._over = True
        self._lively = False
        self.due = monotonic() + LINGER_S
        self.receiver.end(b"".join(self._held) or last)
        self._end(None, None)

    def ended(self) -> None:
        self._connection = None  # which may carry another request already
        self.replica.unwatch(self)
        if self._tell is None:
            return
        if self.reading:
            return self._closed(self.reading)
        body = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        try:
            usage = self._check(body)
        except PenstockError as error:
            return self._end(None, error)
        self._over = True
        self._end(Answer(200, self._head, body, usage), None)

    def _check(self, body: bytes) -> Mapping[str, Any] | None:
        if self._status != 200:
            raise self._refused(body)
        usage = check_whole(self.asked.path, body, self.asked.body)
        if self.asked.streamed:
            raise EngineError("the engine answered at once what was to be a stream")
        if self._may_begin and not self._may_begin(self):
            raise Outrun
        return usage

    def _refused(self, body: bytes) -> PenstockError:
        asked = self.asked
        if self._status in (404, 405) and b'"detail"' in body:
            model = asked.body.get("model")
            return BadRequest(
                f"the model {model!r} does not serve {asked.path}: its engine has no such route", param="model"
            )
        error = from_answer(self._status, body, self._head.get(b"retry-after", b"").decode("latin-1"))
        self._suspicious = says_it_is_dead(error)
        if error.param == "messages":
            error.param = PROMPT_FIELDS.get(asked.path, error.param)
        return error

    def _closed(self, reading: Reading) -> None:
        """The body's end came before the stream's: some engines leave the last event out."""
        try:
            repair = reading.closed()
        except StreamInterrupted as error:
            return self._fail(error)
        self._finish(repair)

    def broke(self, error: EngineError) -> None:
        self._connection = None
        if self._over:
            return self.replica.unwatch(self)
        if self._is_stale(error):
            return self._connect()
        reading = self.reading
        if isinstance(reading, OpenAIReading) and reading.finished:
            self.replica.unwatch(self)
            return self._closed(reading)
        self._suspicious = True
        self._fail(StreamInterrupted("the engine's stream broke off") if self.begun else error)

    def _is_stale(self, error: EngineError) -> bool:
        """The engine had closed the connection already, as servers do with idle ones: no fault of anybody's."""
        reused, self._reused = self._reused, False
        soon = monotonic() - self._asked_at < STALE_S
        return reused and soon and isinstance(error, ConnectionBroke) and error.unanswered

    def _fail(self, error: PenstockError) -> None:
        self._stop()
        self._end(None, error)

    def _stop(self) -> None:
        self.replica.unwatch(self)
        self._held.clear()  # an error that is kept keeps its try
        if self._connection:
            self._connection.abort()
            self._connection = None

    def _wait_for(self, what: str, limit_s: float) -> None:
        self._waits_for = what
        self.due = min(monotonic() + limit_s, self.asked.deadline)


Told = Callable[[Attempt, Answer | None, PenstockError | None], None]
