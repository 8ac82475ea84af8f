"""What a served model is composed of: a step is options that wrap a `Chat`.

A package of steps keeps them in one table, name -> class. Written as `{NAME: {OPTION: VALUE}}`, in the order in which
a request passes them: the first is the outermost.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from penstock.callers import LOCAL, Caller
from penstock.chat import Chat

Around = Callable[[Chat], Chat]
OnInput = Callable[[Sequence[str]], Awaitable[Sequence[str]]]
"""Texts of a request that generates nothing, such as those to be embedded: as they may go on, one for each."""


class Parts(Protocol):
    """What a step may use beside the `Chat` that it wraps."""

    @property
    def folder(self) -> Path:
        """Where the files are that options name by relative paths: the configuration's own directory."""

    def chat(self, model: str) -> Chat:
        """Another served model, by its name. Raises StartError if there is none."""

    async def ask(self, model: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the engine of a served model answers on one of its own routes, such as /v1/embeddings or /classify; the
        body needs no `model`. Raises PenstockError."""

    def for_guard(self, name: str) -> "Parts":
        """The same for a guard: what it asks is told by its name, and is outside of what a request may spend."""


class Step(BaseModel):
    """Its fields are its options, each with a default where there is a sensible one, and a description."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    choosable: ClassVar[bool] = True
    """Whether a caller may choose it for a request: not where it reaches beyond the request whatever its options."""
    operators: ClassVar[frozenset[str]] = frozenset()
    """Options that reach beyond the request, such as files and addresses: only the configuration may set them, and no
    caller who chooses a request's steps."""

    def files(self, folder: Path) -> Sequence[Path]:
        """All that it reads, with what its defaults read of the operator's: it is made anew when one of them is
        another, has gone or has come. `folder`: that of `Parts`."""
        return ()

    def around(self, parts: Parts) -> Around:
        """Made once, when the configuration is taken; what it returns wraps every request's `Chat`. Whatever belongs
        to one request is kept by that `Chat`'s call. Raises StartError for options that cannot be used."""
        raise NotImplementedError

    def on_input(self, parts: Parts) -> OnInput | None:
        """What the step has to say to requests that generate nothing; None for nothing. Made once, too."""
        return None


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Of the request that runs: for what steps log and count, never for what they answer."""

    request_id: str = ""
    model: str = ""
    """The served model's name."""
    surface: str = ""
    """The route: /v1/chat/completions."""
    caller: Caller = LOCAL
    verdicts: dict[str, str] = field(default_factory=dict)
    """Which guards have run, by POLICY/GUARD/DIRECTION, and what came of it: for the access log."""


NONE_KNOWN = Circumstances()
circumstances: ContextVar[Circumstances] = ContextVar("circumstances", default=NONE_KNOWN)

Table = Mapping[str, type[Step]]
Written = Mapping[str, Mapping[str, Any]]
Listed = Sequence[Written]
