"""What the end of a request tells of the version that answered it, counted for one arm of a canary."""

import time

from engine.asked import DeadlineOver
from engine.reading import STREAMING
from penstock import metrics
from penstock.errors import EngineError, PenstockError
from registry.canary_figures import LEAST_S, Arm, Figures
from serving.exchange import Exchange
from serving.ledger import Cost, used_of

CALLERS_FAULT = 500
TOO_MANY = 429


class Tally:
    """`figures` are this process's since the canary began; `subject` and `arm` are for the metrics."""

    __slots__ = ("arm", "figures", "subject")

    def __init__(self, figures: Figures, subject: str, arm: Arm) -> None:
        self.figures = figures
        self.subject = subject
        self.arm = arm

    def note(self, cost: Cost, exchange: Exchange, error: PenstockError | None, began: float) -> None:
        """A request is over. `began` is of `time.perf_counter`; `error` is what its caller was told."""
        now = time.perf_counter()
        if exchange.gone or isinstance(error, DeadlineOver):
            self._left(cost, exchange, now - began)
        elif error is None:
            self._answered(cost, exchange, now - began, began)
        else:
            self.failed(cost, error)

    def failed(self, cost: Cost, error: PenstockError) -> None:
        """Also where a fallback will answer instead."""
        if cost.sent and error.status < CALLERS_FAULT and error.status != TOO_MANY:
            self.figures.requests += 1
            self.figures.refused += 1
            self._counted("refused")
        elif cost.sent or isinstance(error, EngineError):
            self.figures.requests += 1
            self.figures.errors += 1
            self._counted("error")

    def _left(self, cost: Cost, exchange: Exchange, waited_s: float) -> None:
        """No failure of the version's; but if nobody had the patience to see it begin, that is told by the times."""
        self.figures.gone += 1
        if streams(cost) and exchange.first_byte_at is None:
            self.figures.first.note(max(LEAST_S, waited_s))
        self._counted("gone")

    def _answered(self, cost: Cost, exchange: Exchange, seconds: float, began: float) -> None:
        figures, asked = self.figures, cost.asked
        generates = cost.meter is not None or (asked is not None and asked.path in STREAMING)
        figures.requests += 1
        figures.whole.note(max(LEAST_S, seconds))
        if streams(cost) and exchange.first_byte_at is not None:
            figures.first.note(max(LEAST_S, exchange.first_byte_at - began))
        if generates and (tokens := generated(cost)) is not None:
            figures.length.note(1 + tokens)
        self._counted("answered")

    def _counted(self, result: str) -> None:
        metrics.canary_requests.inc(self.subject, self.arm, result)


def streams(cost: Cost) -> bool:
    return cost.streamed or bool(cost.asked and cost.asked.streamed)


def generated(cost: Cost) -> int | None:
    """The tokens of the answer, as the engine says; None if it does not."""
    used = used_of(cost) if cost.usage or cost.meter else None
    return used.completion_tokens if used else None
