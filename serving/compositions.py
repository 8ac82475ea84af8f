"""What stands around each served model, made when the configuration is taken, and again only where it has changed."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.chat import Chat, ChatRequest, Emit, Reply
from penstock.config import Config, WrongAt
from penstock.errors import PenstockError
from serving.composing import PLAIN, Asked, Composition, Reached, ServingParts, composed, no_circle, steps_of

log = logging.getLogger(__name__)


class Compositions:
    """`reached` and `asked` lead steps to other served models."""

    def __init__(self, reached: Reached, asked: Asked) -> None:
        self._reached = reached
        self._asked = asked
        self._made: dict[str, tuple[str, Composition]] = {}

    def change(self, config: Config) -> Mapping[str, Composition]:
        """By served model. Nothing here fails: of one that cannot be made any more, such as when a file has gone since
        it was looked at, every request is refused, and the log says why."""
        made = {}
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


def made_of(config: Config, name: str, reached: Reached, asked: Asked) -> tuple[Composition, Sequence[str]]:
    """One model's, and the other models that it asks. Raises WrongAt."""
    steps = steps_of(config, name)
    if not steps:
        return PLAIN, ()
    parts = ServingParts(Path(config.files or "."), config.models, reached, asked)
    return composed(steps, parts), sorted(parts.named)


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
