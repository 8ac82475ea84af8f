"""Watches an engine that runs elsewhere: whether it answers, and by what name it knows the served model."""

import asyncio
import logging
from collections.abc import Sequence

import orjson

from engine import gauges
from engine.replica import Replica
from penstock.config import Probe
from penstock.errors import EngineError

RETRY_S = 1.0


class Watcher:
    """Asks `/v1/models` every `probe.interval_s`. `model` is the configured name there; None: found by looking."""

    def __init__(self, replica: Replica, probe: Probe, model: str | None, served: Sequence[str]) -> None:
        self.replica = replica
        self.probe = probe
        self.model = model
        self.served = served
        self.log = logging.getLogger(f"engine.{replica.name}")
        self._names: Sequence[str] = ()
        self._adapters: set[str] = set()  # those among them that are no whole models
        self._suspected = asyncio.Event()
        replica.suspect = self._suspect

    def change(self, probe: Probe, model: str | None, served: Sequence[str]) -> None:
        """From now on; by what it was last heard to serve, until it has been asked again, which is at once."""
        self.probe = probe
        if (model, served) == (self.model, self.served):
            return
        self.model, self.served = model, served
        if self.replica.ready:
            try:
                self.replica.model = self._name_there(self._names)
            except EngineError:
                self._set_ready(False)
        self._suspected.set()

    async def run(self) -> None:
        failures = 0
        while True:
            try:
                self._names = await self._listed()
                self.replica.model = self._name_there(self._names)
                failures = 0
                self._set_ready(True)
            except EngineError as error:
                failures += 1
                if failures == (self.probe.failures if self.replica.ready else 1):
                    self.replica.ended(f"{self.replica.name} answers no probe")
                if failures == 1:
                    self.log.warning("not usable: %s", error)
            figures = asyncio.create_task(
                gauges.collect(self.replica.client, self.replica.labels, self.probe.timeout_s)
            )
            await self._pause(self.probe.interval_s if not failures else RETRY_S)
            figures.cancel()

    async def _listed(self) -> list[str]:
        answer = await self.replica.client.ask("GET", "/v1/models", timeout_s=self.probe.timeout_s)
        if answer.status != 200:
            raise EngineError(f"{self.replica.name}: /v1/models answers {answer.status}")
        try:
            listed = orjson.loads(answer.body)["data"]
            self._adapters = {str(model["id"]) for model in listed if model.get("parent")}
            return [str(model["id"]) for model in listed]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"{self.replica.name}: /v1/models is not OpenAI's list of models") from error

    def _name_there(self, names: Sequence[str]) -> str | None:
        """None if the served name is known there; else the configured name, else the only one there is."""
        if self.model:
            if self.model not in names:
                raise EngineError(f"it serves {', '.join(names)}, not {self.model}")
            return self.model
        if all(name in names for name in self.served):
            return None
        whole = [name for name in names if name not in self._adapters]
        if len(whole) == 1:
            return whole[0]
        raise EngineError(f"it serves {', '.join(names)}: say which with the engine's `model`")

    def _suspect(self) -> None:
        self._set_ready(False)
        self._suspected.set()

    async def _pause(self, wait_s: float) -> None:
        try:
            await asyncio.wait_for(self._suspected.wait(), wait_s)
        except TimeoutError:
            return
        self._suspected.clear()

    def _set_ready(self, ready: bool) -> None:
        if ready and not self.replica.ready:
            self.log.info("ready")
        self.replica.set_ready(ready)
