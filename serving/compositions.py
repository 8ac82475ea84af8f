"""What stands around each served model, made when the configuration is taken, and again only where it has changed."""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from penstock.callers import Caller
from penstock.chat import Chat, ChatRequest, Emit, Reply
from penstock.config import Config, WrongAt, listed
from penstock.errors import BadRequest, PenstockError
from penstock.steps import Listed
from serving.composing import (
    PLAIN,
    Asked,
    Composition,
    Place,
    Reached,
    ServingParts,
    composed,
    for_callers,
    no_circle,
    param_of,
    steps_of,
)

log = logging.getLogger(__name__)

CHOSEN_AT: Place = ("penstock", "steps")
MOST_CHOSEN = 256
"""Compositions that callers have chosen, which are kept."""


class Compositions:
    """`reached` and `asked` lead steps to other served models."""

    def __init__(self, reached: Reached, asked: Asked) -> None:
        self._reached = reached
        self._asked = asked
        self._made: dict[str, tuple[str, Composition]] = {}
        self._config = Config.model_construct()
        self._chosen: OrderedDict[bytes, Composition] = OrderedDict()

    def change(self, config: Config) -> Mapping[str, Composition]:
        """By served model. Nothing here fails: of one that cannot be made any more, such as when a file has gone since
        it was looked at, every request is refused, and the log says why."""
        made = {}
        self._config = config
        self._chosen.clear()
        for name in config.models:
            key = key_of(config, name)
            before = self._made.get(name)
            if before and before[0] == key:
                made[name] = before
                continue
            try:
                made[name] = key, made_of(config, name, self._reached, self._asked)[0]
            except WrongAt as error:
                log.error("%s: %s; its requests are refused", ".".join(error.loc), error)
                made[name] = "", Composition([refusing])
        self._made = made
        return {name: composition for name, (_, composition) in made.items()}

    def chosen(self, name: str, written: Sequence[Any], caller: Caller) -> Composition:
        """Steps that a caller has chosen in place of a model's own: kept for the next request, since making them may
        cost. Raises BadRequest, or Forbidden for what this caller may not choose."""
        allowed = sorted(caller.models) if caller.models is not None else None
        key = orjson.dumps((name, allowed, written))
        found = self._chosen.get(key)
        if found is None:
            steps = listed(written)
            try:
                found, _ = made_of(self._config, name, self._reached, self._asked, Chosen(steps, caller.models))
            except WrongAt as error:
                param = param_of(error.loc)
                raise BadRequest(f"{param}: {error}", param=param) from None
            self._chosen[key] = found
            if len(self._chosen) > MOST_CHOSEN:
                self._chosen.popitem(last=False)
        self._chosen.move_to_end(key)
        return found


@dataclass(frozen=True, slots=True)
class Chosen:
    """`models`: those that the caller may use; None: all."""

    steps: Listed
    models: frozenset[str] | None


def made_of(
    config: Config, name: str, reached: Reached, asked: Asked, chosen: Chosen | None = None
) -> tuple[Composition, Sequence[str]]:
    """One model's, with steps `chosen` in place of its own, and the other models that they ask. Raises WrongAt, and
    Forbidden for what may not be chosen."""
    steps = steps_of(chosen.steps, CHOSEN_AT) if chosen else steps_of(config.models[name].steps, placed(name))
    if chosen:
        for_callers(steps)
    if not steps:
        return PLAIN, ()
    allowed = chosen.models if chosen else None
    parts = ServingParts(Path(config.files or "."), config.models, reached, asked, allowed)
    return composed(steps, parts), sorted(parts.named)


def placed(name: str) -> Place:
    return ("models", name, "steps")


def check(config: Config) -> None:
    """Raises WrongAt for steps that cannot be used."""
    edges = {name: list(made_of(config, name, unreached, unasked)[1]) for name in config.models}
    for name, model in config.models.items():
        if model.fallback:
            edges[name].append(model.fallback)
    no_circle(edges)


def key_of(config: Config, name: str) -> str:
    model = config.models[name]
    return repr((model.steps, config.guards if model.steps or model.guards else None, model.guards, config.files))


def refusing(chat: Chat) -> Chat:
    async def refuse(request: ChatRequest, emit: Emit) -> Reply:
        raise PenstockError("this model's steps cannot be made: the gateway's log says why")

    return refuse


def unreached(name: str) -> Chat:
    """Of a configuration that is only looked at: nothing is asked."""

    async def nobody(request: ChatRequest, emit: Emit) -> Reply:
        raise NotImplementedError

    return nobody


async def unasked(name: str, path: str, body: Mapping[str, object]) -> dict[str, object]:
    raise NotImplementedError
