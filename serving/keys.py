"""Who may call: the keys of the configuration, compared in constant time."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from pydantic import SecretStr

from penstock.errors import InvalidKey

REMEDY = "send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"


class Keys:
    """Holds digests, so that a key is nowhere in memory longer than the request that bears it."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._digests = [digest(key.get_secret_value().encode()) for key in keys]

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises InvalidKey. Without configured keys everybody may call: then only loopback is bound."""
        if not self._digests:
            return
        given = sent_key(headers)
        if given is None:
            raise InvalidKey(f"an API key is needed: {REMEDY}")
        found = [hmac.compare_digest(digest(given), known) for known in self._digests]
        if not any(found):
            raise InvalidKey(
                "the API key is not known here: check it for typing errors, or ask whoever runs this gateway"
            )


def sent_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    """OpenAI's header, else Anthropic's."""
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and credentials.strip():
        return credentials.strip()
    return headers.get(b"x-api-key")


def digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
