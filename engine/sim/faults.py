"""Which faults there are, whom they strike, and how they are written: `cut:after=5,times=1` or a JSON object."""

import difflib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

GENERATING = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings",
)  # fmt: skip
HEALTH = ("/health", "/v1/models")
COMMON = ("times", "for_s", "path", "stream", "probability", "seed")


BOUNDS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("times", "for_s", "after", "retry_after_s", "delay_s", "events"), (0, 1e9)),
    "probability": (0, 1),
    "status": (200, 599),
    "period_s": (0.001, 1e9),
    "size_mb": (1, 100_000),
    "size_kb": (1, 100_000),
}


class FaultError(ValueError):
    """A fault that cannot be understood; the message says what would be."""


@dataclass(frozen=True, slots=True)
class Kind:
    """`of`: the answers it can change. `takes`: its own parameters."""

    says: str
    of: Literal["any", "stream", "whole", "connection"] = "any"
    takes: Sequence[str] = ()
    paths: Sequence[str] = GENERATING


KINDS: Mapping[str, Kind] = {
    # Before the head.
    "refuse": Kind("RST as soon as a connection is made", "connection"),
    "hang": Kind("reads the request and never answers"),
    "close_before_headers": Kind("FIN instead of an answer"),
    "reset": Kind("RST instead of an answer"),
    "garbage": Kind("random bytes instead of HTTP"),
    "http09": Kind("a body without a head"),
    "slow_head": Kind("the head comes line by line within `delay_s`", takes=("delay_s",)),
    "informational": Kind("100 and 103 before the answer"),
    # Another answer.
    "status": Kind("an error", takes=("status", "retry_after_s", "html")),
    "health_lies": Kind("an error, while /health and /v1/models are well", takes=("status",)),
    "health_flaps": Kind("/health and /v1/models fail in every second `period_s`", takes=("period_s",), paths=HEALTH),
    "html": Kind("200 with a page"),
    "empty": Kind("200 with nothing"),
    "huge_body": Kind("a body, or an event without an end, of `size_mb`", takes=("size_mb",)),
    "huge_headers": Kind("a head of `size_kb`", takes=("size_kb",)),
    "te_and_cl": Kind("both Content-Length and Transfer-Encoding"),
    "connection_close": Kind("the connection is closed after each answer"),
    "split": Kind("one byte a packet"),
    "usage_lies": Kind("all counts of `usage` are `value`", takes=("value",)),
    "nan": Kind("NaN in the body or in an event", takes=("after",)),
    # Streams; `after` tokens, at the latest before the finish reason.
    "cut": Kind("FIN", "stream", ("after",)),
    "reset_after": Kind("RST", "stream", ("after",)),
    "half_event": Kind("FIN in the middle of an event", "stream", ("after",)),
    "stall": Kind("silence, for `delay_s` or for ever", "stream", ("after", "delay_s")),
    "stall_before_content": Kind("silence after the head and the role", "stream"),
    "no_done": Kind("the last event is missing", "stream"),
    "no_finish": Kind("the finish reason is missing, `[DONE]` is there", "stream"),
    "after_done": Kind("events after the last", "stream"),
    "bad_json": Kind("an event that is half a JSON document", "stream", ("after",)),
    "bad_utf8": Kind("an event with bytes that are no text", "stream", ("after",)),
    "null_delta": Kind("an event more whose delta is null", "stream", ("after",)),
    "error_event": Kind("vLLM's error in the stream", "stream", ("after", "status")),
    "error_first": Kind("vLLM's error as the first event", "stream", ("status",)),
    "crlf": Kind("CR LF line ends", "stream"),
    "comments": Kind("comments between events", "stream"),
    "multi_line": Kind("data over several lines", "stream"),
    "flood": Kind("`events` more, as fast as they go", "stream", ("after", "events")),
    # Whole answers.
    "truncated": Kind("half the body, then FIN", "whole"),
    "wrong_length": Kind("a Content-Length that is `by` too large, or too small", "whole", ("by",)),
}


@dataclass
class Fault:
    """What goes wrong, and for whom.

    It strikes the first `times` requests, or those of the first `for_s` seconds, or all; only those to `path` (a
    pattern such as `/v1/*`; without one, those that generate), only streams or only whole answers (`stream`), and of
    these a share of `probability`, drawn with `seed`. The rest are parameters of single kinds, see KINDS. Raises
    FaultError.
    """

    kind: str
    times: int | None = None
    for_s: float | None = None
    path: str | None = None
    stream: bool | None = None
    probability: float = 1.0
    seed: int = 0
    after: int = 5
    status: int = 500
    retry_after_s: int | None = None
    html: bool = False
    delay_s: float | None = None
    period_s: float = 1.0
    size_mb: int = 80
    size_kb: int = 200
    events: int = 60_000
    value: int = -5
    by: int = 10
    struck: int = field(default=0, compare=False)
    since_s: float = field(default_factory=time.monotonic, compare=False, repr=False)
    dice: random.Random = field(default_factory=random.Random, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise FaultError(f"there is no fault {self.kind!r}{nearest(self.kind, KINDS)}")
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise FaultError(f"{self.kind}: {name} must be from {least:g} to {most:g}, not {value}")
        self.dice.seed(self.seed)

    def strikes(self, path: str, stream: bool) -> bool:
        """Whether this request is hit; if so, it is counted."""
        kind = KINDS[self.kind]
        meant = fnmatchcase(path, self.path) if self.path else path in kind.paths
        fits = kind.of in ("any", "stream" if stream else "whole")
        return meant and fits and self.stream in (None, stream) and self._now()

    def refuses(self) -> bool:
        return KINDS[self.kind].of == "connection" and self._now()

    def _now(self) -> bool:
        if self.times is not None and self.struck >= self.times:
            return False
        if self.for_s is not None and time.monotonic() - self.since_s > self.for_s:
            return False
        if self.dice.random() >= self.probability:
            return False
        self.struck += 1
        return True

    def document(self) -> dict[str, Any]:
        """As it is given and shown over HTTP."""
        names = ("kind", *COMMON, *KINDS[self.kind].takes, "struck")
        return {name: getattr(self, name) for name in names}


TYPES = {one.name: (get_args(one.type) or (one.type,))[0] for one in fields(Fault)}


def parse(text: str) -> Fault:
    """`cut:after=5,times=1` -> Fault("cut", after=5, times=1). Raises FaultError."""
    kind, _, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",") if pair]
    for name, equals, _ in pairs:
        if not equals:
            raise FaultError(f"{text!r}: write {name}=VALUE")
    return read({"kind": kind, **{name: value for name, _, value in pairs}})


def read(document: Any) -> Fault:
    """{"kind": "cut", "after": 5} -> Fault("cut", after=5). Raises FaultError."""
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        raise FaultError('a fault is an object with a kind, such as {"kind": "cut", "after": 5}')
    kind = document["kind"]
    if kind not in KINDS:
        raise FaultError(f"there is no fault {kind!r}{nearest(kind, KINDS)}")
    known = (*KINDS[kind].takes, *COMMON)
    given = {name: value for name, value in document.items() if name not in ("kind", "struck") and value is not None}
    for name in given:
        if name not in known:
            raise FaultError(f"{kind} takes {', '.join(known)}; not {name!r}")
    return Fault(kind, **{name: converted(kind, name, value) for name, value in given.items()})


def converted(kind: str, name: str, value: Any) -> Any:
    """A parameter's value in the type of its field, from text or JSON."""
    wanted = TYPES[name]
    text = str(value).lower()
    try:
        if wanted is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text]
        return str(value) if wanted is str else wanted(text)
    except (ValueError, KeyError):
        raise FaultError(f"{kind}: {name} must be {WANTED[wanted]}, not {value!r}") from None


WANTED = {int: "a whole number", float: "a number", bool: "true or false"}


def nearest(word: str, known: Mapping[str, Any]) -> str:
    found = difflib.get_close_matches(word, known, 1)
    return f", did you mean {found[0]!r}?" if found else f"; there are {', '.join(known)}"
