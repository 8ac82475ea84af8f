"""What becomes of moves: served, refused, or tried again; in log, metrics and audit log, each once.

`what` is where a reference stands in the configuration: engines.base, models.terse.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from penstock import audit, metrics
from penstock.errors import EngineError, PenstockError, StateUnavailable
from penstock.store import UNAVAILABLE, reason
from registry.versions import Version
from serving.served import Served

log = logging.getLogger(__name__)

FOR_NOW = (*UNAVAILABLE, EngineError, StateUnavailable, TimeoutError)
"""What may be over soon: it is tried again, and nothing is refused for it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """`for_good`: not to be tried again until the reference leads elsewhere."""

    version: str
    why: str
    for_good: bool = True


class Outcomes:
    def __init__(self, served: Served) -> None:
        self.served = served
        self._refused: dict[str, Refusal] = {}
        self._waiting: dict[str, str] = {}  # why what is tried again did not succeed

    def is_refused(self, what: str, version: Version) -> bool:
        refusal = self._refused.get(what)
        return refusal is not None and refusal.for_good and refusal.version == version.reference

    def another_chance(self, what: str) -> None:
        if refusal := self._refused.get(what):
            self._refused[what] = replace(refusal, for_good=False)

    def accept(self, what: str) -> None:
        """What it leads to is what is served."""
        self._refused.pop(what, None)
        self._waiting.pop(what, None)
        self._show(what, 0)

    def accepted(self, what: str, before: Version | str | None, version: Version) -> None:
        """It is served from now on."""
        self.accept(what)
        metrics.version_moves.inc(what, "served")
        was = before.reference if isinstance(before, Version) else before
        log.info("%s: %s is served now, before it was %s", what, version.reference, was)
        self._note("version.served", what, {"from": was, "to": version.reference})

    def later(self, what: str, written: str, version: Version | None, error: BaseException) -> None:
        """It will be tried again, and was not refused."""
        if version:  # it is not the database that keeps silent
            self._show(what, 1)
        before, self._waiting[what] = self._waiting.get(what), said(error)
        if before != said(error):
            name = version.reference if version else "what nobody can say now"
            log.warning("%s: %s leads to %s, which will be tried again: %s", what, written, name, said(error))

    def refuse(
        self, what: str, written: str, version: Version | None, error: BaseException, *, for_good: bool = True
    ) -> None:
        """Once for each version and reason."""
        name, why = version.reference if version else written, said(error)
        before, self._refused[what] = self._refused.get(what), Refusal(name, why, for_good)
        if before and (before.version, before.why) == (name, why):
            return
        self._show(what, 1)
        metrics.version_moves.inc(what, "refused")
        log.error("%s: %s leads to %s, which is not served; what was before goes on: %s", what, written, name, why)
        self._note("version.refused", what, {"reference": written, "version": name, "reason": why[:2000]})

    def forget_others(self) -> None:
        """What the configuration does not refer to any more."""
        for what in {str(what) for (what,) in metrics.alias_refused.values} - self.served.all_referred():
            self.accept(what)
            metrics.alias_refused.forget(what)

    def _show(self, what: str, refused: int) -> None:
        """Nothing of what a reload has taken out meanwhile."""
        if what in self.served.all_referred():
            metrics.alias_refused.set(refused, what)

    def _note(self, action: audit.Action, what: str, details: Mapping[str, Any]) -> None:
        """Beside what is done, which may be given up for a later move."""
        self.served.beside(self._noted(action, what, details))

    async def _noted(self, action: audit.Action, what: str, details: Mapping[str, Any]) -> None:
        try:
            await audit.note(self.served.store, audit.this_process(), action, what, **details)
        except UNAVAILABLE as error:
            log.error("the audit log does not say %s of %s: %s", action, what, reason(error))


def said(error: BaseException) -> str:
    return error.message if isinstance(error, PenstockError) else reason(error)
