"""Who may call: the keys of the configuration, compared in constant time; without any, programs on this machine."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from functools import lru_cache
from urllib.parse import urlsplit

from pydantic import SecretStr

from penstock.callers import LOCAL, Caller
from penstock.config import LOOPBACK
from penstock.errors import Forbidden, InvalidKey

REMEDY = "send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"


class Keys:
    """Compares digests: equal in length, and nothing to be learned from where they differ."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._digests = [digest(key.get_secret_value().encode()) for key in keys]
        self._callers = [configured(number) for number in range(len(keys))]

    def check(self, headers: Mapping[bytes, bytes]) -> Caller:
        """Raises InvalidKey; without configured keys, Forbidden for what a page of the web sends from this machine."""
        if not self._digests:
            only_local(headers)
            return LOCAL
        given = sent_key(headers)
        if given is None:
            raise InvalidKey(f"an API key is needed: {REMEDY}")
        found = [hmac.compare_digest(digest(given), known) for known in self._digests]
        if not any(found):
            raise InvalidKey(
                "the API key is not known here: check it for typing errors, or ask whoever runs this gateway"
            )
        return self._callers[found.index(True)]


def configured(number: int) -> Caller:
    """Whoever has a key of the configuration: no limits, all but the admin API."""
    return Caller(f"config-{number}", f"config-{number}", "config", LOCAL.scopes)


def only_local(headers: Mapping[bytes, bytes]) -> None:
    """Loopback lets every program here in, a browser too: a page from elsewhere has its own Origin, or, after it has
    rebound its name to this machine's address, its own Host. Raises Forbidden."""
    for name in (b"host", b"origin"):
        value = headers.get(name)
        if value and not is_loopback(value):
            raise Forbidden(
                f"without configured keys only this machine is let in, not {value.decode('latin-1')!r}: "
                "add gateway.keys"
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


def digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
