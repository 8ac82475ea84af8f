"""The canaries that this process serves: what it counts of them gets into the database every second, and whoever looks
there first and finds enough ends them, in favour of one version or the other.

While the database does not answer, requests go on being split and counted; nothing is judged, and nothing is lost. A
kill -9 loses what was counted in the last second.
"""

import asyncio
import logging
import os
import platform
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from evals.canary import Verdict, judge
from penstock import audit, metrics
from penstock.errors import Conflict
from penstock.references import Reference
from penstock.store import UNAVAILABLE, Store, reason
from registry.aliases import move
from registry.canaries import Canary, end, those
from registry.canary_figures import Both, read, row_of, write

if TYPE_CHECKING:
    from serving.stack import Stack

log = logging.getLogger(__name__)

EVERY_S = 1.0
PATIENCE_S = 5.0


@dataclass(eq=False)
class Counted:
    """A canary, and what this process has counted of it since the canary, or the process, began. `written` is what the
    database has of that; `runs` is over when somebody has ended it."""

    canary: Canary
    both: Both = field(default_factory=Both)
    written: object = None
    runs: bool = True

    @property
    def figures(self) -> object:
        return row_of(self.both.stable), row_of(self.both.canary)


class Trials:
    """`begin` when requests are split, `run` beside everything else, until cancelled. `ended` is told of each canary
    that is over, whoever has ended it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ended: Callable[[Canary], None] = lambda canary: None
        self._counted: dict[int, Counted] = {}
        self._process = f"{platform.node()[:36] or 'here'}:{os.getpid()}:{secrets.token_hex(4)}"
        self._lost = False

    def joined(self, stack: "Stack") -> None:
        """Its requests are split, counted here, and split no longer when that is over."""
        stack.count = self.begin
        self.ended = stack.end_trial

    def begin(self, canary: Canary) -> Both:
        """Where its requests are counted: the same however often it is asked."""
        return self._counted.setdefault(canary.id, Counted(canary)).both

    async def run(self) -> NoReturn:
        """Whatever goes wrong, the next look may succeed: without this task no canary would ever be judged."""
        try:
            while True:
                await asyncio.sleep(EVERY_S)
                if self._counted:
                    await self._look()
        finally:
            await self._close()

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                running = await self._known()
                await self._write()
                for counted in running:
                    await self._judge(counted)
        except Exception as error:
            self._failed(error)
            return
        if self._lost:
            log.warning("the database answers again: canaries are judged")
        self._lost = False
        metrics.canaries_unwritten.set(0)

    async def _known(self) -> list[Counted]:
        """Those that run. What others have ended is over here, too; what is not in the database, or is another canary
        there, was lost with a state that somebody has put back."""
        known = await those(self.store, self._counted)
        for counted in list(self._counted.values()):
            now = known.get(counted.canary.id)
            if now is None or now.started_at != counted.canary.started_at:
                del self._counted[counted.canary.id]
                self._over(counted, None)
            elif not now.runs and counted.runs:
                self._over(counted, now)
        return [counted for counted in self._counted.values() if counted.runs]

    def _failed(self, error: Exception) -> None:
        metrics.canaries_unwritten.set(1)
        if not self._lost:
            unforeseen = None if isinstance(error, UNAVAILABLE) else error
            log.error(
                "canaries' figures are kept until the database takes them, and nothing is judged: %s",
                reason(error),
                exc_info=unforeseen,
            )
        self._lost = True

    async def _write(self) -> None:
        """What has changed since."""
        changed = [(each, each.figures) for each in self._counted.values() if each.figures != each.written]
        await write(self.store, self._process, {each.canary.id: each.both for each, _ in changed})
        for each, figures in changed:
            each.written = figures
        for counted in [each for each in self._counted.values() if not each.runs]:
            del self._counted[counted.canary.id]  # what still ran when it ended is not waited for

    async def _judge(self, counted: Counted) -> None:
        """Of all gateways that find the same, one ends it; the others see that by their next look."""
        canary = counted.canary
        verdict = judge(await read(self.store, canary.id), canary.rules, max(0.0, time.time() - canary.started_at))
        if verdict.decision != "wait" and await self._ended(canary, verdict):
            metrics.canaries_ended.inc(canary.subject, verdict.decision)
            self._over(counted, (await those(self.store, [canary.id]))[canary.id])

    async def _ended(self, canary: Canary, verdict: Verdict) -> bool:
        """Whether it was this process that has ended it."""
        by = audit.this_process()
        if verdict.decision == "back":
            return await end(self.store, canary.id, "back", by, verdict.report()) is not None
        to = Reference(canary.name, canary.version)
        try:
            moved = await move(
                self.store, canary.alias, to, canary.from_version, by, verdict.report(), canary=canary.id
            )
        except Conflict as late:
            log.debug("the canary of %s is not this gateway's to end: %s", canary.subject, late)
            return False
        return moved is not None

    def _over(self, counted: Counted, canary: Canary | None) -> None:
        """None: it is not in the database any more."""
        counted.runs = False
        was = counted.canary
        if canary is None:
            log.warning(
                "the canary of %s is not in the database any more: its requests are split no longer", was.subject
            )
        else:
            reasons = "; ".join((canary.verdict or {}).get("reasons", ()))
            level = logging.WARNING if canary.outcome == "back" else logging.INFO
            log.log(level, "%s (%s, by %s): %s", canary.end, canary.outcome, canary.ended_by, reasons or "no verdict")
        self.ended(was)

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._write()
        except UNAVAILABLE as error:
            log.error("what was counted of canaries in the last moments is lost: %s", reason(error))
