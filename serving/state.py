"""What a gateway knows that outlasts it: the store, the keys in it, of which each process keeps a true copy, and what
they have used.

A change of a key is known in every process within POLL_S and the time of one query. While the store does not answer,
the copy goes on serving, and the log says so once.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn

from penstock import audit
from penstock.audit import NOTHING
from penstock.config import LOOPBACK, Config
from penstock.errors import StartError
from penstock.keyring import Keyring, pepper
from penstock.store import UNAVAILABLE, Store, opened, reason
from serving.admission import check_shared
from serving.keys import Keys
from serving.ledger import Ledger
from serving.trials import Trials

log = logging.getLogger(__name__)

POLL_S = 0.25
PATIENCE_S = 5.0
RESTORED = (
    "the database has been put back to an earlier state than was known here (change %d of the keys): all keys are read "
    "again; a key that was revoked after that state was saved is valid again, until it is revoked once more"
)


@dataclass(frozen=True)
class State:
    store: Store
    keyring: Keyring
    keys: Keys
    ledger: Ledger
    trials: Trials

    async def moved(self, changed: Sequence[str]) -> None:
        """The audit log says that the configuration is another, and in what."""
        try:
            await audit.note(
                self.store, audit.this_process(), "config.reloaded", "configuration", changed=list(changed)
            )
        except UNAVAILABLE as error:
            log.error("the audit log does not say that the configuration has changed: %s", reason(error))


@asynccontextmanager
async def kept(config: Config) -> AsyncIterator[State]:
    """In each process that answers. Raises StartError, also for a gateway that would be open to others."""
    async with opened(config.state.database) as store:
        keyring = Keyring(store, pepper(config.state.pepper))
        keys = Keys(config.gateway.keys, keyring.pepper)
        copy = Copy(keyring, keys, config)
        try:
            await keyring.check_pepper()
            await copy.refresh()
        except UNAVAILABLE as error:
            raise StartError(f"the keys cannot be read from the database: {reason(error)}") from error
        check_shared(config, keys.limited())
        if config.gateway.host not in LOOPBACK:
            refuse_to_be_open(config.gateway.host, keys)
            keys.closed = True  # nor will it be open later
        ledger = Ledger(store)
        trials = Trials(store)
        beside = [asyncio.create_task(job) for job in (copy.follow(), ledger.run(), trials.run())]
        try:
            yield State(store, keyring, keys, ledger, trials)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)


@asynccontextmanager
async def governed(config: Config, address: tuple[str, int]) -> AsyncIterator[State]:
    """Once in each gateway, however many processes answer: `kept`, its start and end in the audit log, the admin
    API."""
    async with kept(config) as state, administered(config, state):
        where = f"{address[0]}:{address[1]}"
        await audit.note(state.store, audit.this_process(), "gateway.started", where, models=list(config.models))
        try:
            yield state
        finally:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await audit.note(state.store, audit.this_process(), "gateway.stopped", where)
            except UNAVAILABLE as error:
                log.error("the audit log does not say that this gateway has ended: %s", reason(error))


@asynccontextmanager
async def administered(config: Config, state: State) -> AsyncIterator[None]:
    """FastAPI is imported where it is wanted."""
    if config.admin.port is None:
        yield
        return
    from serving import admin

    async with admin.listening(config.admin, config.admin.port, state.keyring, state.keys):
        yield


class Copy:
    """`keys`, brought up to date with the store."""

    def __init__(self, keyring: Keyring, keys: Keys, config: Config) -> None:
        self.keyring = keyring
        self.keys = keys
        self.config = config
        self._seen = NOTHING
        self._lost = False

    async def refresh(self) -> bool:
        """Whether anything has changed."""
        news = await self.keyring.since(self._seen)
        if restored := news.restored:
            log.warning(RESTORED, self._seen.change)
            news = await self.keyring.since(NOTHING)
        self.keys.learn(news.keys, all=restored)
        self._seen = news.seen
        return bool(news.keys) or restored

    async def follow(self) -> NoReturn:
        """Whatever goes wrong, the next look may succeed: without this task no revocation would ever be known."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    if await self.refresh():
                        check_shared(self.config, self.keys.limited())
            except StartError as error:  # not now: this gateway runs
                log.error("until then each worker holds them by itself: %s", error)
            except Exception as error:
                self._failed(error)
            else:
                if self._lost:
                    log.warning("the database answers again: changes of keys are known within a second")
                self._lost = False

    def _failed(self, error: Exception) -> None:
        if not self._lost:
            unforeseen = None if isinstance(error, UNAVAILABLE) else error
            log.error(
                "the database does not answer; the keys known so far go on, and changes wait: %s",
                reason(error),
                exc_info=unforeseen,
            )
        self._lost = True


def refuse_to_be_open(host: str, keys: Keys) -> None:
    """Raises StartError."""
    if not keys.needed:
        raise StartError(
            f"gateway.host {host} is reachable by others and no key is set: make one with `penstock keys create`, "
            "add gateway.keys, or set PENSTOCK_GATEWAY__KEYS='[\"...\"]', or bind 127.0.0.1"
        )
