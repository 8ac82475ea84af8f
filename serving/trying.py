"""Makes the versions of canaries ready to be asked, in the process that moves versions: an adapter beside the present
one, another version of a whole model beside the replicas that serve.

Requests are split when it is ready, not before. A canary that goes on leaves its replicas to the move of its alias
(`serving/moving.py`), which starts none then; one that goes back has its own ended, when they have done what they do.
One that cannot be served here goes back at once, and one that cannot be asked within its `longest_s` goes back then;
both say why.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import partial

from penstock import audit, metrics
from penstock.errors import EngineTimeout, NotFound, PenstockError
from penstock.references import Reference
from penstock.store import UNAVAILABLE, reason
from registry.canaries import Canary, all_canaries, end
from registry.resolve import found, is_registered
from serving.engines import Generation
from serving.moving import Moving
from serving.outcomes import FOR_NOW, said

log = logging.getLogger(__name__)

RETRY_S = 1.0
READY_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Preparing:
    canary: Canary
    task: asyncio.Task[None]


class Trying:
    """`run` beside `moving`, until cancelled; `look_again` when there may be other canaries, or other models."""

    def __init__(self, moving: Moving) -> None:
        self.served, self.loaded, self.replacing = moving.served, moving.loaded, moving.replacing
        self.store = self.served.store
        self.engines = self.served.engines
        self._running: dict[int, Canary] = {}
        self._preparing: dict[int, Preparing] = {}
        self._why: dict[int, str] = {}
        self._told: dict[str, Generation] = {}
        self._news = asyncio.Event()
        self._news.set()

    def look_again(self) -> None:
        self._news.set()

    async def run(self) -> None:
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                try:
                    await self._look()
                except Exception as error:  # without this task no canary would ever begin or end here
                    unforeseen = None if isinstance(error, UNAVAILABLE) else error
                    level = logging.ERROR if unforeseen else logging.DEBUG  # of the database others have said it
                    log.log(level, "canaries will be looked at again: %s", reason(error), exc_info=unforeseen)
                    self._later()
        finally:
            tasks = [each.task for each in self._preparing.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _later(self) -> None:
        asyncio.get_running_loop().call_later(RETRY_S, self._news.set)

    async def _look(self) -> None:
        if not self.served.refers:
            return
        running = {canary.id: canary for canary in await all_canaries(self.store)}
        over = [canary for number, canary in self._running.items() if running.get(number) != canary]
        for canary in over:
            del self._running[canary.id]
        self._publish()
        given_up = [each for number, each in self._preparing.items() if running.get(number) != each.canary]
        for preparing in given_up:  # all before any is waited for, else another gets ready meanwhile
            preparing.task.cancel()
        if given_up:
            await asyncio.wait([each.task for each in given_up])
        for canary in [*over, *(each.canary for each in given_up)]:
            self._why.pop(canary.id, None)
            self.loaded.untry(canary.tried)
        await self._sweep()
        for canary in running.values():
            if canary.id not in self._preparing and not self._is_ready(canary):
                self._preparing[canary.id] = Preparing(canary, asyncio.create_task(self._prepare(canary)))

    def _is_ready(self, canary: Canary) -> bool:
        """Also where it is no business of this gateway's."""
        if not self._engines(canary) and not self._adapter_engines(canary):
            return True
        return (
            canary.id in self._running
            and all(self._tries(engine, canary) for engine in self._engines(canary))
            and all(self.loaded.is_tried(engine, canary.tried) for engine in self._adapter_engines(canary))
        )

    async def _prepare(self, canary: Canary) -> None:
        """Until it can be asked; at most as long as it may run, for who never begins is judged by nobody."""
        left_s = canary.started_at + canary.rules.longest_s - time.time()
        try:
            async with asyncio.timeout(left_s) as bound:
                version = await found(self.store, canary.tried)
                for engine in self._engines(canary):
                    if not self._tries(engine, canary):
                        await self._start(engine, canary)
                for engine in self._adapter_engines(canary):
                    await self.loaded.try_out(engine, version)
        except FOR_NOW as error:
            if bound.expired():
                return await self._refuse(canary, self._too_late(canary))
            self._waits(canary, said(error))
            self._later()
        except PenstockError as error:
            await self._refuse(canary, error)
        except Exception as error:  # else it would neither begin nor end, without a word
            log.error("unexpected, in preparing the canary of %s", canary.subject, exc_info=error)
            await self._refuse(canary, error)
        else:
            self._why.pop(canary.id, None)
            self._running[canary.id] = canary
            self._publish()
        finally:
            self._preparing.pop(canary.id, None)

    def _too_late(self, canary: Canary) -> EngineTimeout:
        """What it waited for in vain."""
        engines = [*self._engines(canary), *self._adapter_engines(canary)]
        down = [each.name for engine in engines for each in self.served.replicas(engine) or () if not each.usable]
        first = [each.version for engine in engines if (each := self.engines.tried.get(engine))]
        waited = f"{', '.join(down)}: not ready" if down else "it is still starting"
        why = self._why.get(canary.id) or (f"{first[0]} has not taken over yet" if first else waited)
        return EngineTimeout(f"it could not be asked within longest_s ({canary.rules.longest_s:g} s): {why}")

    async def _start(self, engine: str, canary: Canary) -> None:
        """Its replicas, beside those that serve, which come first, and so do those of a canary before that are about to
        be the current ones. Raises StartError; NotFitting."""
        while engine in self.engines.tried or not all(each.ready for each in self.engines.current[engine].replicas):
            await asyncio.sleep(READY_POLL_S)
        log.info("engines.%s: starting %s, the canary of %s", engine, canary.tried, canary.subject)
        version = await found(self.store, canary.tried)
        self.engines.tried[engine] = await self.replacing.start(engine, version, partial(self._waits, canary))

    def _waits(self, canary: Canary, why: str) -> None:
        """Said once."""
        if self._why.get(canary.id) != why:
            self._why[canary.id] = why
            log.warning("the canary of %s is not ready, and tried again: %s", canary.subject, why)

    async def _refuse(self, canary: Canary, error: BaseException) -> None:
        """It goes back for all: what one gateway cannot serve, the alias must not lead to."""
        by = audit.this_process()
        self._why.pop(canary.id, None)
        self.loaded.untry(canary.tried)
        report = {"canary": "back", "reasons": [f"{by} cannot serve it: {said(error)[:2000]}"]}
        try:
            if await end(self.store, canary.id, "back", by, report):
                metrics.canaries_ended.inc(canary.subject, "back")
                log.error("the canary of %s goes back: %s", canary.subject, report["reasons"][0])
        except (*UNAVAILABLE, NotFound):  # or the database was put back to before it, which the next look shows
            self._later()

    async def _sweep(self) -> None:
        """Replicas that are tried no longer end, unless the alias leads to their version: then they are about to be
        the current ones."""
        canaries = [*self._running.values(), *(each.canary for each in self._preparing.values())]
        wanted = {(engine, canary.tried) for canary in canaries for engine in self._engines(canary)}
        for engine, generation in list(self.engines.tried.items()):
            if (engine, generation.version) in wanted:
                continue
            try:
                pointed = (await found(self.store, self.served.config.engines[engine].model or "")).reference
            except NotFound:  # the database was put back to before it
                pointed = ""
            if self.engines.tried.get(engine) is not generation:
                continue
            if generation.version != pointed or self.served.bases[engine].reference == pointed:
                del self.engines.tried[engine]
                self._publish()
                self.replacing.retire(generation)

    def _publish(self) -> None:
        """The processes that answer are told what is other than before: whose requests are split, and on which
        replicas."""
        models = {name: canary for canary in self._running.values() for name in self._models(canary)}
        canaries = {name: canary.described() for name, canary in models.items()}
        told, tried = self.served.versions.canaries, dict(self.engines.tried)
        if (canaries, tried) == (told, self._told):
            return
        for name in models.keys() - told.keys():
            share = f"{models[name].percent:g} % of the requests for {name}"
            log.info("%s gets %s: the canary of %s", models[name].tried, share, models[name].subject)
        self._told = tried
        self.served.try_out(canaries)

    def _models(self, canary: Canary) -> list[str]:
        engines = [engine for engine in self._engines(canary) if self._tries(engine, canary)]
        warm = [engine for engine in self._adapter_engines(canary) if self.loaded.is_tried(engine, canary.tried)]
        return [
            name
            for name, model in self.served.config.models.items()
            if (
                self._refers(model.adapter, canary) and model.engine in warm
                if model.adapter
                else model.engine in engines
            )
        ]

    def _engines(self, canary: Canary) -> list[str]:
        """Those started here whose model it is of."""
        config = self.served.config
        return [
            name
            for name, engine in config.engines.items()
            if is_registered(engine) and self._refers(engine.model, canary)
        ]

    def _adapter_engines(self, canary: Canary) -> list[str]:
        models = self.served.config.models.values()
        return list({model.engine: None for model in models if self._refers(model.adapter, canary)})

    def _tries(self, engine: str, canary: Canary) -> bool:
        generation = self.engines.tried.get(engine)
        return generation is not None and generation.version == canary.tried

    def _refers(self, written: str | None, canary: Canary) -> bool:
        return written is not None and str(Reference.of(written)) == canary.subject
