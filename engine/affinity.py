"""Which replica has seen how a prompt begins: an approximate prefix index over the bytes of its messages.

A prompt is a chain of hashes, one after each message and, inside long ones, after each block; equal chains mean equal
beginnings. The index remembers for each link which replicas were sent it, and forgets the links unused the longest.
It asks the engines nothing: what they evict it does not know, hence approximate.
"""

import re
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import orjson

BLOCK_CHARS = 1024
MAX_LINKS = 128
CHARS_PER_TOKEN = 4
DEFAULT_OUTPUT_TOKENS = 256
MOST_OUTPUT_TOKENS = 1024
DATA_URL = re.compile(rb'"data:[^"]{1024,}"')
MEDIUM_CHARS = 4096
# What is ranked or scored: the question first, which several requests may have in common.
COMPARED = ("query", "queries", "text_1", "data_1", "documents", "items", "text_2", "data_2")


@dataclass(slots=True)
class Hint:
    """What of a request decides where it goes: its chain, its size in tokens (estimated, with the answer and for the
    prompt alone), and the caller's own key."""

    chain: Sequence[int] = ()
    tokens: int = DEFAULT_OUTPUT_TOKENS
    key: str | None = None
    token_ids: Sequence[int] = field(default=())
    prompt_tokens: int = 0
    salt: str = ""


def hint_of(body: Mapping[str, Any], session: bytes | None = None) -> Hint:
    """`session` is the caller's session header, which stands above the body's `prompt_cache_key`."""
    links: list[int] = []
    chars = 0
    given = body.get("cache_salt")
    salt = given if isinstance(given, str) else ""
    link = hash(salt) if salt else 0  # what no engine takes for equal, shares nothing here either
    for part in parts(body):
        size = len(part)
        chars += size if size <= BLOCK_CHARS or isinstance(part, str) else size - media_chars(part)
        if size <= BLOCK_CHARS:
            link = hash((link, part))
            links.append(link)
            continue
        for block in blocks(part):
            link = hash((link, block))
            links.append(link)
    wanted = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("max_output_tokens")
    output = max(0, min(wanted, MOST_OUTPUT_TOKENS)) if isinstance(wanted, int) else DEFAULT_OUTPUT_TOKENS
    key = session.decode("latin-1") if session else body.get("prompt_cache_key")
    prompt_tokens = chars // CHARS_PER_TOKEN
    return Hint(
        links[:MAX_LINKS], prompt_tokens + output, key if isinstance(key, str) else None, (), prompt_tokens, salt
    )


def media_chars(part: bytes) -> int:
    """How much of it is media, beyond what their tokens are taken for: a picture is no text of its length."""
    return sum(max(0, len(found[0]) - MEDIUM_CHARS) for found in DATA_URL.finditer(part))


def parts(body: Mapping[str, Any]) -> Iterable[str | bytes]:
    """The prompt from its beginning: tools, the system's words, then turn after turn."""
    turns = body.get("messages")
    if type(turns) is list and turns and not (body.get("tools") or body.get("system") or body.get("documents")):
        return [text_of(turn) for turn in turns]
    return other_parts(body)


def other_parts(body: Mapping[str, Any]) -> Iterator[str | bytes]:
    if body.get("tools"):
        yield orjson.dumps(body["tools"])
    for name in ("system", "instructions"):
        if body.get(name):
            yield text_of(body[name])
    yield from each(body.get("messages") or body.get("prompt") or body.get("input") or ())
    for name in COMPARED:
        if body.get(name):
            yield from each(body[name])


def each(turns: Any) -> Iterator[str | bytes]:
    if isinstance(turns, str):
        yield turns
        return
    for turn in turns if isinstance(turns, list) else (turns,):
        yield text_of(turn)


def text_of(turn: Any) -> str | bytes:
    if isinstance(turn, str):
        return turn
    if isinstance(turn, dict) and len(turn) == 2:
        content = turn.get("content")
        if isinstance(content, str):
            return f"{turn.get('role')}\n{content}"
    return orjson.dumps(turn)


def blocks(part: str | bytes) -> Iterator[str | bytes]:
    """A long message in pieces, wider where it is so long that it would fill the chain alone."""
    size = BLOCK_CHARS
    while len(part) > size * MAX_LINKS // 2:
        size *= 2
    for start in range(0, len(part), size):
        yield part[start : start + size]


class PrefixIndex:
    """Links of chains -> the replicas that were sent them, as a bit mask; at most `limit` links are kept."""

    def __init__(self, limit: int = 65536) -> None:
        self.limit = limit
        self._seen: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def longest(self, chain: Sequence[int]) -> int:
        """The replicas, as a mask, that were sent the longest part of the beginning; 0 if none was."""
        seen = self._seen
        for link in reversed(chain):
            mask = seen.get(link)
            if mask:
                return mask
        return 0

    def sent(self, chain: Sequence[int], bit: int) -> None:
        seen = self._seen
        for link in chain:
            seen[link] = seen.get(link, 0) | bit
            seen.move_to_end(link)
        while len(seen) > self.limit:
            seen.popitem(last=False)

    def forget(self, bit: int) -> None:
        """The replica with this bit holds nothing any more: it was restarted, or is another one now."""
        for link, mask in self._seen.items():
            if mask & bit:
                self._seen[link] = mask & ~bit


class Ring:
    """Consistent hashing: which member a key belongs to, the same in every process that knows the same members.

    Walking on from a key's place gives the order in which others take over (consistent hashing with bounded loads,
    Mirrokni, Thorup and Zadimoghaddam, 2016).
    """

    POINTS = 64

    def __init__(self, members: Mapping[str, int]) -> None:
        """`members`: name -> the number that `walk` yields for it."""
        points = [(point(f"{name}#{copy}"), number) for name, number in members.items() for copy in range(self.POINTS)]
        points.sort()
        self._places = [place for place, _ in points]
        self._numbers = [number for _, number in points]
        self._size = len(members)

    def walk(self, key: str) -> Iterator[int]:
        """Every member once, the key's own first."""
        seen: set[int] = set()
        start = bisect_left(self._places, point(key))
        for step in range(len(self._places)):
            number = self._numbers[(start + step) % len(self._places)]
            if number not in seen:
                seen.add(number)
                yield number
                if len(seen) == self._size:
                    return


def point(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())
