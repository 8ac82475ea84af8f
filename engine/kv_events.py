"""Finds and follows what replicas publish about their KV caches (vLLM's `--kv-events-config`).

Events carry the prompts' tokens, unencrypted and to whoever connects: their port belongs inside, or on a socket file.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import BaseModel, TypeAdapter, ValidationError

from engine.cached import Cached
from penstock.errors import EngineError, StartError

TCP = re.compile(r"tcp://(?P<host>.+):(?P<port>[0-9]+)")
REPLAY_TIMEOUT_S = 5.0
ANY_HOST = frozenset({"*", "0.0.0.0", "::", "[::]"})


@dataclass(frozen=True)
class Source:
    """Where one data-parallel rank publishes; `replay` is where it repeats what was missed, if it does."""

    endpoint: str
    replay: str | None = None
    topic: str = ""


class Publisher(BaseModel):
    """vLLM's KVEventsConfig as /kv_event_sources tells it: ports are the rank's own already."""

    endpoint: str
    replay_endpoint: str | None = None
    topic: str = ""


PUBLISHERS = TypeAdapter(dict[int, Publisher])


async def sources(get: Callable[[str], Awaitable[bytes]], host: str) -> list[Source]:
    """What a replica publishes, by rank; nothing if it does not. `get` returns the body at a path of the replica.

    `host` is the replica's, for publishers that listen on every address of theirs. Raises EngineError for an answer
    that is not vLLM's, and whatever `get` does where an engine has no such route.
    """
    body = await get("/kv_event_sources")
    try:
        ranks = PUBLISHERS.validate_json(body)
    except ValidationError as error:
        raise EngineError(f"/kv_event_sources does not list KV event publishers: {body[:80]!r}") from error
    found = []
    for _, publisher in sorted(ranks.items()):
        endpoint = reachable(publisher.endpoint, host)
        if endpoint:
            replay = reachable(publisher.replay_endpoint, host) if publisher.replay_endpoint else None
            found.append(Source(endpoint, replay, publisher.topic))
    return found


def reachable(endpoint: str, host: str) -> str | None:
    """("tcp://*:5557", "10.0.0.7") -> "tcp://10.0.0.7:5557"; None for what lies inside the engine's process."""
    if endpoint.startswith("inproc:"):
        return None
    found = TCP.fullmatch(endpoint)
    if not found or found["host"] not in ANY_HOST:
        return endpoint
    return f"tcp://[{host}]:{found['port']}" if ":" in host else f"tcp://{host}:{found['port']}"


async def follow(
    endpoint: str,
    cached: Cached,
    *,
    replay: str | None = None,
    topic: str = "",
    replay_timeout_s: float = REPLAY_TIMEOUT_S,
) -> None:
    """Keeps `cached` as its publisher tells, until cancelled. Each rank has a cache of its own.

    What is missed is asked for at `replay`; without it, and when the publisher ends, what was known is dropped. A
    publisher that has run for a while tells only of what changes from then on. Raises StartError if pyzmq or msgspec
    is not installed, or the endpoint is none.
    """
    try:
        from engine.kv_subscriber import Subscriber
    except ImportError as error:
        raise StartError(
            f"following KV events needs the packages pyzmq and msgspec, and there is no module {error.name}: "
            "pip install 'pyzmq>=27' 'msgspec>=0.20'"
        ) from error
    await Subscriber(Source(endpoint, replay, topic), cached, replay_timeout_s).run()
