"""Which requests a canary gets: its share of the conversations, the same ones in every gateway and all the time.

A conversation goes by the caller's session (`x-session-id`). Where none is named it goes by how it begins, together
with the body's `user`: an application that names all its users alike does not send all of them one way.
"""

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

from engine.affinity import text_of
from registry.canaries import Canary
from serving.exchange import Exchange

SESSION = b"x-session-id"
ALL = 2**64
MOST_TURNS = 8
"""Of a conversation in which no user speaks."""
MOST_CHARS = 4096
"""Of each turn: half of them from its beginning, which many may have in common, half from its end."""


def takes(canary: Canary, exchange: Exchange, body: Mapping[str, Any]) -> bool:
    """Whether this request is among those for the version that is tried."""
    return place(canary, exchange, body) < canary.percent / 100 * ALL


def place(canary: Canary, exchange: Exchange, body: Mapping[str, Any]) -> int:
    """Of the request's conversation among all, from 0 to 2**64 - 1; another one in every canary, so that it is not
    always the same callers who try what is new."""
    digest = blake2b(digest_size=8)
    for part in (
        f"{canary.subject} {canary.version}".encode(),
        exchange.tenant.encode(),
        *conversation(exchange, body),
    ):
        digest.update(b"%d " % len(part))
        digest.update(part)
    return int.from_bytes(digest.digest())


def conversation(exchange: Exchange, body: Mapping[str, Any]) -> Iterator[bytes]:
    """What does not change while a conversation goes on."""
    session = exchange.headers.get(SESSION)
    if session:
        yield session
        return
    user = body.get("user")
    yield user.encode(errors="replace") if isinstance(user, str) else b""
    yield from map(as_bytes, beginning(body))


def beginning(body: Mapping[str, Any]) -> Iterator[str | bytes]:
    """What it was told, up to the first that the user says."""
    for name in ("system", "instructions"):
        if body.get(name):
            yield told(body[name])
    turns = body.get("messages") or body.get("input") or body.get("prompt") or body.get("query") or ()
    whole = not isinstance(turns, list) or isinstance(turns[0], int)  # tokens
    for turn in (turns,) if whole else turns[:MOST_TURNS]:
        yield told(turn)
        if isinstance(turn, dict) and turn.get("role") == "user":
            return


def told(turn: Any) -> str | bytes:
    try:
        return text_of(turn)
    except TypeError:  # nested too deeply, which is refused before it gets anywhere
        return b""


def as_bytes(part: str | bytes) -> bytes:
    if len(part) > MOST_CHARS:
        half = MOST_CHARS // 2
        return b"%d " % len(part) + as_bytes(part[:half]) + as_bytes(part[-half:])
    return part if isinstance(part, bytes) else part.encode(errors="replace")
