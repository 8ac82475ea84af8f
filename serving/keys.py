"""Who may call: the holders of keys, configured or stored; while there never was a key, programs on this machine.

Whatever is sent as a key costs one HMAC and one look-up, were there one key or ten thousand, and a wrong secret costs
what an unknown id does: nothing is learned from how long a refusal takes.
"""

import hmac
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from urllib.parse import urlsplit

from pydantic import SecretStr

from penstock.callers import CONFIGURED, LOCAL, RESERVED_TENANTS, Caller, Scope
from penstock.config import LOOPBACK
from penstock.errors import Forbidden, InvalidKey
from penstock.keyring import ID, PEPPER_BYTES, Key, digest

log = logging.getLogger(__name__)

REMEDY = "send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"
UNKNOWN = "the API key is not known here: check it for typing errors, or ask whoever runs this gateway"
NOBODY = (bytes(32), LOCAL)  # no HMAC that anybody can find is all zeros


class Keys:
    """`pepper` is that of the stored keys. `closed`: a key is needed though there is none."""

    def __init__(self, configured: Sequence[SecretStr], pepper: bytes | None = None, *, closed: bool = False) -> None:
        self.pepper = pepper or secrets.token_bytes(PEPPER_BYTES)
        self._stored: dict[bytes, tuple[bytes, Caller]] = {}
        self.closed = closed
        self.learned: Callable[[Sequence[Caller]], None] = lambda callers: None
        """Told of the holders of keys that have been stored or changed."""
        self.configure(configured)

    @property
    def needed(self) -> bool:
        """Not less so when the last one has been revoked or has expired."""
        return self.closed or bool(self._configured)

    def configure(self, keys: Sequence[SecretStr]) -> None:
        """These are from now on the keys of the configuration. To look one up by its HMAC tells nothing of it."""
        self.closed = self.closed or bool(keys)  # that none is left opens nothing
        self._configured = {
            digest(self.pepper, key.get_secret_value().encode()): configured(number) for number, key in enumerate(keys)
        }

    def learn(self, keys: Sequence[Key], *, all: bool = False) -> None:
        """What has been stored, changed or revoked; `all`: there are no others, so those known before are forgotten."""
        stored = {} if all else self._stored
        for key in keys:
            self.closed = True
            if key.revoked_at is None:
                stored[key.id.encode()] = (key.digest, apart(key.caller))
            else:
                stored.pop(key.id.encode(), None)
        self._stored = stored
        self.learned([key.caller for key in keys])

    def limited(self) -> list[str]:
        """The names of the stored keys that have limits."""
        return [caller.name for _, caller in self._stored.values() if not caller.quota.is_unlimited]

    def any_may(self, scope: Scope) -> bool:
        """Whether a stored key has the scope."""
        return any(scope in caller.scopes for _, caller in self._stored.values())

    def check(self, headers: Mapping[bytes, bytes]) -> Caller:
        """Raises InvalidKey; while no key is needed, Forbidden for what a page of the web sends from this machine."""
        if not self.needed:
            only_local(headers)
            return LOCAL
        given = sent_key(headers)
        if given is None:
            raise InvalidKey(f"an API key is needed: {REMEDY}")
        sent = digest(self.pepper, given)
        kept, holder = self._stored.get(given[ID], NOBODY)
        caller = holder if hmac.compare_digest(sent, kept) else self._configured.get(sent)
        if caller is None:
            raise InvalidKey(UNKNOWN)
        if caller.expires_at is not None and caller.expires_at <= time.time():
            raise InvalidKey("the API key has expired: ask whoever runs this gateway for a new one")
        return caller


def configured(number: int) -> Caller:
    """Whoever has a key of the configuration: no limits, all but the admin API."""
    return Caller(f"config-{number}", f"config-{number}", CONFIGURED, LOCAL.scopes)


def apart(caller: Caller) -> Caller:
    """A stored key that was made before its tenant was reserved shares nothing with those whom that is for: it gets a
    tenant that no key can be given, `config (stored)`."""
    if caller.tenant not in RESERVED_TENANTS:
        return caller
    tenant = f"{caller.tenant} (stored)"
    log.warning(
        "the tenant of the key %r, %s, is that of callers whose keys are not stored, so it counts as %r: "
        "make a key with another tenant in its place",
        caller.name,
        caller.tenant,
        tenant,
    )
    return replace(caller, tenant=tenant)


def require(caller: Caller, scope: Scope) -> None:
    """Raises Forbidden, naming the scope."""
    if scope not in caller.scopes:
        raise Forbidden(f"this key lacks the scope `{scope}`; it has {', '.join(sorted(caller.scopes))}")


def only_local(headers: Mapping[bytes, bytes]) -> None:
    """Loopback lets every program here in, a browser too: a page from elsewhere has its own Origin, or, after it has
    rebound its name to this machine's address, its own Host. Raises Forbidden."""
    for name in (b"host", b"origin"):
        value = headers.get(name)
        if value and not is_loopback(value):
            raise Forbidden(
                f"without keys only this machine is let in, not {value.decode('latin-1')!r}: "
                "add gateway.keys, or make one with `penstock keys create`"
            )


@lru_cache(maxsize=1024)
def is_loopback(authority: bytes) -> bool:
    """Whether a Host or Origin header names this machine: b"localhost:8000", b"http://127.0.0.1"."""
    value = authority.decode("latin-1")
    try:
        return urlsplit(value if "://" in value else f"//{value}").hostname in LOOPBACK
    except ValueError:
        return False


def sent_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    """OpenAI's header, else Anthropic's."""
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and credentials.strip():
        return credentials.strip()
    return headers.get(b"x-api-key")
