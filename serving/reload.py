"""The configuration read again: on SIGHUP, and when its file has changed.

What cannot be used, or cannot change while the gateway runs, leaves everything as it is, and the log says why: the
file, the line, the nearest key. A file is read once it has stayed the same for two looks, so that one which is being
written is not taken for the whole; replaced by a rename, as editors and Kubernetes do, it is another file.
"""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from engine import discovery
from penstock import metrics
from penstock.addresses import is_discovered
from penstock.config import Config, WrongAt
from penstock.errors import ConfigError, StartError
from penstock.hangup import Hangup
from penstock.source import Source
from serving.admission import check_shared
from serving.compositions import check, stamps

log = logging.getLogger(__name__)

LOOK_S = 0.5
Path = tuple[str, ...]
FIXED: Sequence[Path] = (
    ("gateway", "host"),
    ("gateway", "port"),
    ("gateway", "workers"),
    ("admin",),
    ("state",),
    ("registry",),
    ("log",),
)
NO_FILE = "SIGHUP: there is no configuration file to read again; `penstock serve --config FILE` has one"


class Reload:
    """`config` is what is served, `apply` takes what is to be served instead, `note` is told what has changed.
    `prepare` makes sure, before, that it can be served."""

    def __init__(
        self,
        source: Source,
        config: Config,
        apply: Callable[[Config], None],
        note: Callable[[Sequence[str]], Awaitable[None]] | None = None,
        prepare: Callable[[Config], Awaitable[None]] | None = None,
    ) -> None:
        self.source = source
        self.config = config
        self._stamps = self._read_stamps = stamps(config)
        self.apply = apply
        self.note = note
        self.prepare = prepare

    async def run(self) -> NoReturn:
        """Until cancelled. A SIGHUP that came before counts; afterwards whoever had the signal has it again."""
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        # not the loop's own handler, which would leave a moment, between two, in which the signal ends the process
        before = signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(told.set))
        if isinstance(before, Hangup) and before.came:
            told.set()
        try:
            await self._follow(told)
        finally:
            signal.signal(signal.SIGHUP, before)

    async def _follow(self, told: asyncio.Event) -> NoReturn:
        last = self.source.read_at
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), LOOK_S)
            now = self.source.stamp()
            if told.is_set() or now == last != self.source.read_at:
                told.clear()
                await self.again()
            last = now

    async def again(self) -> None:
        """Whatever a file can do to its reader, the gateway goes on with the one before."""
        if self.source.path is None:
            return log.warning(NO_FILE)
        try:
            config, changes = await asyncio.to_thread(self._read)
            if self._is_being_written:
                return
            if changes and self.prepare:
                await self.prepare(config)
            if changes:
                self.apply(config)
        except StartError as error:
            if not self._is_being_written:
                self._refused(error.message)
        except Exception as error:
            log.exception("unexpected, in reading %s", self.source.path, exc_info=error)
            self._refused(f"{self.source.path} cannot be read: {type(error).__name__}")
        else:
            self.config, self._stamps = config, self._read_stamps
            metrics.config_refused.set(0)
            metrics.reloads.inc("applied" if changes else "unchanged")
            names = names_of(changes)
            log.info("%s was read again; changed: %s", self.source.path, ", ".join(names) or "nothing")
            if changes and self.note:
                await self.note(names)

    def _read(self) -> tuple[Config, list[Path]]:
        """What the file says now, and where that differs. Raises StartError."""
        config = self.source.again()
        changes = list(differences(self.config.revealed(), config.revealed()))
        self._read_stamps = stamps(config)
        if not changes and self._read_stamps != self._stamps:  # of files that steps and guards name
            changes = [("files",)]
        if changes and self.source.is_empty:  # at the start that is the demo; now somebody is about to write
            raise ConfigError(f"{self.source.path} is empty")
        if fixed := needing_a_restart(changes, self.config, config):
            raise ConfigError(f"{self.source.path}: only a restart can change {', '.join(fixed)}")
        try:
            check(config)
        except WrongAt as error:
            raise self.source.wrong(error) from error
        try:
            check_shared(config)
        except StartError as error:
            raise ConfigError(f"{self.source.path}: {error.message}") from error
        for url in (url for engine in config.engines.values() for url in engine.urls if is_discovered(url)):
            discovery.check(url)
        return config, changes

    @property
    def _is_being_written(self) -> bool:
        """It has changed since it was read, and will be read again."""
        return self.source.stamp() != self.source.read_at

    def _refused(self, why: str) -> None:
        metrics.reloads.inc("refused")
        metrics.config_refused.set(1)
        log.error("the configuration is not used, the one before serves on: %s", why)


def needing_a_restart(paths: Iterable[Path], before: Config, after: Config) -> list[str]:
    """Of the settings that differ those that a running gateway cannot change, each by its name."""
    return names_of(path for path in paths if is_fixed(path, before, after))


def names_of(paths: Iterable[Path]) -> list[str]:
    """As a person writes them, each once. Not the addresses in `urls`: there may be a password in one."""
    return list(dict.fromkeys(".".join(path[:3] if path[2:3] == ("urls",) else path) for path in paths))


def is_fixed(path: Path, before: Config, after: Config) -> bool:
    if path[0] != "engines":
        return any(path[: len(fixed)] == fixed for fixed in FIXED)
    engines = [config.engines[path[1]] for config in (before, after) if path[1] in config.engines]
    if any(engine.model and not engine.urls for engine in engines):  # a process of ours, of which this is free:
        return path[2:3] != ("routing",) or path[3:] == ("kv_events",)
    if len(path) == 2:
        return path[1] in after.engines and after.engines[path[1]].routing.kv_events
    return path[2:] == ("routing", "kv_events")


def differences(before: Any, after: Any, path: Path = ()) -> Iterator[Path]:
    """{a: {b: 1}, c: 2}, {a: {b: 3}, c: 2} -> (a, b). What is only on one side is told as a whole."""
    if before == after:
        return
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        yield path
        return
    for key in [*before, *(key for key in after if key not in before)]:
        if key in before and key in after:
            yield from differences(before[key], after[key], (*path, key))
        else:
            yield (*path, key)
