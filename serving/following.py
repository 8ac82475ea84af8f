"""Follows the registry's aliases: what has moved is known within POLL_S and the time of one query.

While the database does not answer, what is served goes on, and the log says so once. A database that was put back to
an earlier state is read as a whole.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import NoReturn

from penstock.audit import NOTHING
from penstock.references import Reference
from penstock.store import UNAVAILABLE, Store, reason
from registry import aliases

log = logging.getLogger(__name__)

POLL_S = 0.25
PATIENCE_S = 5.0

Moved = Callable[[Collection[Reference]], None]


class Following:
    """`moved` is told which aliases are other ones, `changed` that aliases or their canaries are; while none is
    `wanted`, nothing is asked."""

    def __init__(
        self, store: Store, moved: Moved, wanted: Callable[[], bool], changed: Callable[[], None] = lambda: None
    ) -> None:
        self.store = store
        self.moved = moved
        self.wanted = wanted
        self.changed = changed
        self._seen = NOTHING
        self._number = 0
        self._known: dict[Reference, int] = {}
        self._lost = False

    async def look(self) -> Collection[Reference]:
        """Those that have moved since the last look, at first all."""
        news = await aliases.news(self.store, self._seen)
        if restored := news.restored:
            log.warning("the database has been put back to an earlier state: all aliases are read again")
            news = await aliases.news(self.store, NOTHING)
        changed = restored or news.number != self._number
        self._seen, self._number = news.seen, news.number
        pointed = {Reference(each.name, each.alias): each.version for each in news.aliases}
        gone = self._known.keys() - pointed.keys() if restored else set()
        moved = [each for each, version in pointed.items() if self._known.get(each) != version or not restored]
        self._known = pointed if restored else self._known | pointed
        if changed or moved:
            self.changed()
        return [*moved, *gone]

    async def run(self) -> NoReturn:
        """Until cancelled. Whatever goes wrong, the next look may succeed."""
        while True:
            await asyncio.sleep(POLL_S)
            if not self.wanted():
                continue
            try:
                async with asyncio.timeout(PATIENCE_S):
                    if moved := await self.look():
                        self.moved(moved)
            except Exception as error:
                self._failed(error)
            else:
                if self._lost:
                    log.warning("the database answers again: aliases are followed")
                self._lost = False

    def _failed(self, error: Exception) -> None:
        if not self._lost:
            unforeseen = None if isinstance(error, UNAVAILABLE) else error
            log.error(
                "the database does not answer; the versions that are served go on, and moves of aliases wait: %s",
                reason(error),
                exc_info=unforeseen,
            )
        self._lost = True
