"""What came of a request's guards: counted, logged, and told to whoever writes the access log. Never the text."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from guards.guard import Direction
from penstock import metrics
from penstock.chat import Reply, Usage
from penstock.errors import BadRequest, EngineRefused, PenstockError
from penstock.log import request_id
from penstock.steps import circumstances

log = logging.getLogger(__name__)

MAY_QUOTE = (BadRequest, EngineRefused)
RANK = ("pass", "flag", "mask", "block", "failed")


class Verdicts:
    """Of one policy and one request. A guard that looked and found nothing has its verdict, too."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self._found: dict[tuple[str, Direction], Counter[str]] = {}
        self._verdicts: dict[tuple[str, Direction], str] = {}
        self._why: dict[tuple[str, Direction], dict[str, str | None]] = {}
        self._usage = Usage()

    def ran(self, guard: str, direction: Direction) -> None:
        self._verdicts.setdefault((guard, direction), "pass")

    def found(self, guard: str, direction: Direction, verdict: str, kind: str = "", count: int = 1) -> None:
        """The gravest of a guard's verdicts is the one that is told."""
        before = self._verdicts.get((guard, direction), "pass")
        self._verdicts[guard, direction] = max(before, verdict, key=RANK.index)
        if kind:
            self._found.setdefault((guard, direction), Counter())[kind] += count

    def cost(self, guard: str, calls: Iterable[Usage]) -> None:
        """Of served models that it has asked."""
        for usage in calls:
            self._usage += usage.of(f"{self.policy}.{guard}")

    def charged(self, reply: Reply) -> Reply:
        """With what its guards have cost; unless nobody has told what the rest did, as of an answer that was cut off:
        then it is known only of all together."""
        if Usage() in (self._usage, reply.usage):
            return reply
        return replace(reply, usage=self._usage + reply.usage)

    def failed(self, guard: str, direction: Direction, error: Exception, target: str | None) -> None:
        """`target`: whom it asked. What is told are our own words: in those of others, and of refusals, there may be
        text of the request."""
        self.found(guard, direction, "failed", type(error).__name__)
        says = error.message if isinstance(error, PenstockError) and not isinstance(error, MAY_QUOTE) else None
        self._why[guard, direction] = {"target": target, "error": says}

    def tell(self) -> None:
        """Once, when the request is over, however it ended."""
        now = circumstances.get()
        for (guard, direction), verdict in self._verdicts.items():
            metrics.guard_verdicts.inc(guard, direction, verdict)
            # a copy: of a request whose client has left, a thread may still be looking
            kinds: Mapping[str, int] = dict(self._found.get((guard, direction), {}))
            said = ",".join(f"{kind}:{count}" for kind, count in sorted(kinds.items()))
            now.verdicts[f"{self.policy}/{guard}/{direction}"] = f"{verdict}({said})" if said else verdict
            if verdict != "pass":
                self._log(guard, direction, verdict, said)

    def _log(self, guard: str, direction: Direction, verdict: str, kinds: str) -> None:
        now = circumstances.get()
        token = request_id.set(now.request_id or request_id.get())
        try:
            log.log(
                logging.ERROR if verdict == "failed" else logging.WARNING,
                "guard %s",
                verdict,
                extra={
                    "policy": self.policy,
                    "guard": guard,
                    "direction": direction,
                    "kinds": kinds or None,
                    "key": now.caller.id,
                    "model": now.model or None,
                    "surface": now.surface or None,
                    **self._why.get((guard, direction), {}),
                },
            )
        finally:
            request_id.reset(token)


def took(guard: str, direction: Direction, seconds: float) -> None:
    metrics.guard_seconds.observe(seconds, guard, direction)
