"""What stands around each served model, made when the configuration is taken, and again only where it has changed."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from guards.places import stamp
from guards.policy import Made
from penstock.chat import Chat, ChatRequest, Emit, Reply
from penstock.config import Config, WrongAt
from penstock.errors import PenstockError, StartError
from penstock.steps import Step
from serving.composing import (
    IN_POLICIES,
    PLAIN,
    STEPS,
    Asked,
    Composition,
    Place,
    Reached,
    ServingParts,
    composed,
    no_circle,
    policies_of,
    policy_of,
    steps_of,
)

log = logging.getLogger(__name__)


class Compositions:
    """`reached` and `asked` lead steps to other served models."""

    def __init__(self, reached: Reached, asked: Asked) -> None:
        self._reached = reached
        self._asked = asked
        self._made: dict[str, tuple[str, Composition]] = {}
        self._policies: dict[tuple[str, ...], Composition] = {}
        self._config: Config | None = None

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
                made[name] = "", refused(error)
        self._made = made
        self._policies = {}
        self._config = config
        return {name: composition for name, (_, composition) in made.items()}

    def policies(self, names: Sequence[str]) -> Composition:
        """Those of `guards` that stand around a model for some callers, the first outermost. Made when they are first
        needed; as above, nothing passes in the place of one that cannot be."""
        found = self._policies.get(tuple(names))
        if found is None:
            assert self._config is not None
            parts = parts_of(self._config, self._reached, self._asked)
            try:
                found = composed(policies_of(self._config, names), parts)
            except WrongAt as error:
                found = refused(error)
            self._policies[tuple(names)] = found
        return found

    def made(self, name: str) -> Made:
        """One of the configuration's `guards`. Raises PenstockError where it cannot be made."""
        assert self._config is not None
        try:
            return Made(policy_of(self._config, name), parts_of(self._config, self._reached, self._asked))
        except (WrongAt, StartError) as error:
            log.error("guards.%s: %s; requests that need it are refused", name, error)
            raise PenstockError("these guards cannot be made: the gateway's log says why") from None


def made_of(config: Config, name: str, reached: Reached, asked: Asked) -> tuple[Composition, Sequence[str]]:
    """One model's, and the other models that it asks. Raises WrongAt."""
    model = config.models[name]
    steps = [*policies_of(config, [model.guards] if model.guards else []), *steps_of(config, name)]
    return made_from(config, steps, reached, asked)


def made_from(
    config: Config, steps: Sequence[tuple[Step, Place]], reached: Reached, asked: Asked
) -> tuple[Composition, Sequence[str]]:
    if not steps:
        return PLAIN, ()
    parts = parts_of(config, reached, asked)
    return composed(steps, parts), sorted(parts.named)


def parts_of(config: Config, reached: Reached, asked: Asked) -> ServingParts:
    return ServingParts(Path(config.files or "."), config.models, reached, asked)


def check(config: Config) -> None:
    """Raises WrongAt for steps and guards that cannot be used."""
    edges = {name: list(made_of(config, name, unreached, unasked)[1]) for name in config.models}
    for name, model in config.models.items():
        if model.fallback:
            edges[name].append(model.fallback)
    for name in config.guards:
        made_from(config, policies_of(config, [name]), unreached, unasked)
    no_circle(edges)


def key_of(config: Config, name: str) -> str:
    model = config.models[name]
    guards = config.guards if model.steps or model.guards else None
    return repr((model.steps, guards, model.guards, config.files, stamps(config)))


def stamps(config: Config) -> Sequence[tuple[int, int] | None]:
    """Of the files that steps and guards name: others whenever one of them is another."""
    written = [*(model.steps for model in config.models.values()), *config.guards.values()]
    places = [
        Path(config.files or ".") / value
        for name, options in (item for listed in written for step in listed for item in step.items())
        if (kind := STEPS.get(name) or IN_POLICIES.get(name))
        for option in sorted(kind.operators)
        if isinstance(value := options.get(option), str)
    ]
    return [stamp(place) for place in places]


def refused(error: WrongAt) -> Composition:
    """What stands in the place of steps that cannot be made: nothing passes."""
    log.error("%s: %s; requests that need it are refused", ".".join(error.loc), error)
    return Composition([refusing], [refusing_texts])


async def refusing_texts(texts: Sequence[str]) -> Sequence[str]:
    raise PenstockError("this model's steps cannot be made: the gateway's log says why")


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
