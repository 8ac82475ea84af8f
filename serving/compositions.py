"""What stands around each served model, made when the configuration is taken, and again only where it has changed."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from guards.places import stamp
from guards.policy import Made, Policy
from penstock.callers import Caller
from penstock.chat import Chat, ChatRequest, Emit, Reply
from penstock.config import Config, WrongAt, step_of
from penstock.errors import BadRequest, PenstockError, StartError
from penstock.steps import Written
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
    policies_of,
    policy_of,
    steps_of,
)
from serving.makings import files_of, in_policies, in_steps, makings

log = logging.getLogger(__name__)

CHOSEN_AT: Place = ("penstock", "steps")
Stamps = Sequence[tuple[str, tuple[int, int] | None]]
MOST_CHOSEN = 256
"""Compositions that callers have chosen, which are kept."""


class Compositions:
    """`reached` and `asked` lead steps to other served models."""

    def __init__(self, reached: Reached, asked: Asked) -> None:
        self._reached = reached
        self._asked = asked
        self._made: dict[str, tuple[str, OfModel]] = {}
        self._config = Config.model_construct()
        self._chosen: OrderedDict[bytes, Composition] = OrderedDict()
        self._policies: dict[tuple[str, ...], OfModel] = {}

    def change(self, config: Config) -> Mapping[str, Composition]:
        """By served model. Nothing here fails: of one that cannot be made any more, such as when a file has gone since
        it was looked at, every request is refused, and the log says why."""
        made = {}
        self._chosen.clear()
        stamped = stamps(config)
        for name in config.models:
            key = key_of(config, name, stamped)
            before = self._made.get(name)
            if before and before[0] == key:
                made[name] = before
                continue
            try:
                made[name] = key, made_of(config, name, self._reached, self._asked)
            except WrongAt as error:
                nothing = refused(error)
                made[name] = "", OfModel(nothing, nothing)
        self._made = made
        self._policies = {}
        self._config = config
        return {name: of_model.whole for name, (_, of_model) in made.items()}

    def chosen(self, name: str, written: Sequence[Any], caller: Caller) -> Composition:
        """Steps that a caller has chosen in place of a model's own, but of no guards: these stay, before them, as they
        were made. Kept for the next request, since making them may cost. Raises BadRequest, or Forbidden for what this
        caller may not choose."""
        allowed = sorted(caller.models) if caller.models is not None else None
        key = orjson.dumps((name, allowed, written))
        found = self._chosen.get(key)
        if found is None:
            try:
                picked = steps_of(self._config, as_listed(written), CHOSEN_AT)
                for_callers(picked)
                parts = parts_of(self._config, self._reached, self._asked, caller.models)
                found = joined([self._made[name][1].guards, composed(picked, parts)])
            except WrongAt as error:
                param = param_of(error.loc)
                raise BadRequest(f"{param}: {error}", param=param) from None
            self._chosen[key] = found
            if len(self._chosen) > MOST_CHOSEN:
                self._chosen.popitem(last=False)
        self._chosen.move_to_end(key)
        return found

    def policies(self, names: Sequence[str]) -> Composition:
        """Those of `guards` that stand around a model for some callers, the first outermost. Made when they are first
        needed; as above, nothing passes in the place of one that cannot be."""
        return self._around(names).whole

    def _around(self, names: Sequence[str]) -> "OfModel":
        found = self._policies.get(tuple(names))
        if found is None:
            parts = parts_of(self._config, self._reached, self._asked)
            try:
                whole = composed(policies_of(self._config, names), parts)
                found = OfModel(whole, whole, sorted(parts.named), makings(self._config, [], names))
            except WrongAt as error:
                whole = refused(error)
                found = OfModel(whole, whole)
            self._policies[tuple(names)] = found
        return found

    def makings(self, name: str, around: Sequence[str], version: Callable[[str], str | None]) -> str | None:
        """What makes the answers of a served model that has the policies `around` it, and of all that it may ask:
        steps, guards, budgets, models. `version`: the registered one of a served model. None of what is not in the
        configuration."""
        if name not in self._config.models:
            return None
        outside = self._around(around)
        parts: dict[str, Any] = {}
        left = [name, *outside.asks]
        while left:
            if (one := left.pop()) in parts:
                continue
            model, of_model = self._config.models[one], self._made[one][1]
            engine = self._config.engines[model.engine].model
            parts[one] = of_model.makings, model.budget_tokens, engine, model.adapter, version(one), model.fallback
            left += [*of_model.asks, *filter(None, [model.fallback])]
        return repr((name, outside.makings, sorted(parts.items())))

    def made(self, name: str) -> Made:
        """One of the configuration's `guards`. Raises PenstockError where it cannot be made."""
        try:
            return Made(policy_of(self._config, name), parts_of(self._config, self._reached, self._asked))
        except (WrongAt, StartError) as error:
            log.error("guards.%s: %s; requests that need it are refused", name, error)
            raise PenstockError("these guards cannot be made: the gateway's log says why") from None


def as_listed(chosen: Sequence[Any]) -> list[Written]:
    """As the configuration has its own. Raises WrongAt."""
    steps: list[Written] = []
    for number, step in enumerate(chosen):
        try:
            steps.append(step_of(step))
        except ValueError as error:
            raise WrongAt((*map(str, CHOSEN_AT), str(number)), str(error)) from None
    return steps


@dataclass(frozen=True, slots=True)
class OfModel:
    """`guards`: of the whole what stays where a caller chooses the steps. `asks`: other models that its steps do.
    `makings`: what it was made of."""

    whole: Composition
    guards: Composition
    asks: Sequence[str] = ()
    makings: str = ""


def made_of(config: Config, name: str, reached: Reached, asked: Asked) -> OfModel:
    """Raises WrongAt."""
    model = config.models[name]
    steps = policies_of(config, [model.guards] if model.guards else [])
    steps += steps_of(config, model.steps, ("models", name, "steps"))
    parts = parts_of(config, reached, asked)
    made = [(isinstance(step, Policy), composed([(step, place)], parts)) for step, place in steps]
    guards = [composition for is_guard, composition in made if is_guard]
    return OfModel(
        joined([composition for _, composition in made]),
        joined(guards),
        sorted(parts.named),
        makings(config, model.steps, [model.guards] if model.guards else []),
    )


def joined(compositions: Sequence[Composition]) -> Composition:
    """The outermost first."""
    if not compositions:
        return PLAIN
    return Composition(
        [around for each in compositions for around in each.arounds],
        [on_input for each in compositions for on_input in each.inputs],
    )


def parts_of(config: Config, reached: Reached, asked: Asked, allowed: Collection[str] | None = None) -> ServingParts:
    return ServingParts(Path(config.files or "."), config.models, reached, asked, allowed)


def check(config: Config) -> None:
    """Raises WrongAt for steps and guards that cannot be used."""
    edges = {name: list(made_of(config, name, unreached, unasked).asks) for name in config.models}
    for name, model in config.models.items():
        if model.fallback:
            edges[name].append(model.fallback)
    for name in config.guards:
        composed(policies_of(config, [name]), parts_of(config, unreached, unasked))
    no_circle(edges)


def key_of(config: Config, name: str, stamped: Stamps) -> str:
    model = config.models[name]
    guards = config.guards if model.steps or model.guards else None
    return repr((model.steps, guards, model.guards, config.files, stamped))


def stamps(config: Config) -> Stamps:
    """Of the files that steps and guards read: others whenever one of them is another, has gone or has come."""
    folder = Path(config.files or ".")
    steps = [step for model in config.models.values() for step in model.steps]
    read = files_of(folder, [*in_steps(steps), *in_policies(config.guards.values())])
    return [(str(file), stamp(file)) for file in read]


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


def unreached(name: str, guard: str) -> Chat:
    """Of a configuration that is only looked at: nothing is asked."""

    async def nobody(request: ChatRequest, emit: Emit) -> Reply:
        raise NotImplementedError

    return nobody


async def unasked(name: str, path: str, body: Mapping[str, object], guard: str) -> dict[str, object]:
    raise NotImplementedError
