"""Steps as they are written become what wraps a served model's `Chat`.

They are found in one table, by exact names. What is wrong with one is told with the place where it stands.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

import prompting
from guards import GUARDS
from guards.guard import Guard
from guards.policy import Options, Policy
from penstock.chat import Chat
from penstock.config import Config, WrongAt, nearest
from penstock.errors import Forbidden, StartError
from penstock.steps import Around, Listed, OnInput, Parts, Step, Table, Written


class Named(Step):
    """The guards of a policy, at this place among the steps; a guard's own name is a policy of it alone."""

    name: str = Field(description="of a list in `guards`, or of a guard")


GUARD = "guard"
POLICY = "policy"
STEPS: Table = {**prompting.STEPS, GUARD: Named}
IN_POLICIES: Table = {**GUARDS, POLICY: Options}
Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Composition:
    """`arounds`: the outermost first. `inputs`: what requests that generate nothing pass."""

    arounds: Sequence[Around] = ()
    inputs: Sequence[OnInput] = ()

    def around(self, chat: Chat, between: Around | None = None) -> Chat:
        """`between`: what stands around each `Chat` that a step is given."""
        for around in reversed(self.arounds):
            chat = around(between(chat) if between else chat)
        return chat


PLAIN = Composition()


def parsed(written: Written, place: Place, table: Table, what: str = "step") -> Step:
    """{self_refine: {rounds: 1}} -> the step. Raises WrongAt for a name or an option that does not exist."""
    ((name, options),) = written.items()
    kind = table.get(name)
    if kind is None:
        near = nearest(name, list(table))
        raise WrongAt(tuple(map(str, place)), f"unknown {what} {name!r}{near} (`penstock steps`)")
    try:
        return kind(**options)
    except ValidationError as error:
        raise WrongAt((*map(str, place), name), said(error, kind, name)) from None


def said(error: ValidationError, kind: type[Step], name: str) -> str:
    """The first thing that is wrong with a step's options, as a person would say it."""
    detail = error.errors(include_url=False, include_input=False)[0]
    option = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        known = list(kind.model_fields)
        near = nearest(str(detail["loc"][-1]), known)
        return f"{name} has no option {option!r}{near}: it has {', '.join(known) or 'none'}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{name}.{option}: {message}" if option else f"{name}: {message}"


def composed(steps: Sequence[tuple[Step, Place]], parts: Parts) -> Composition:
    """Raises WrongAt for what cannot be used."""
    arounds, inputs = [], []
    for step, place in steps:
        try:
            arounds.append(step.around(parts))
            on_input = step.on_input(parts)
        except StartError as error:
            raise WrongAt(tuple(map(str, place)), error.message) from error
        if on_input:
            inputs.append(on_input)
    return Composition(arounds, inputs)


def steps_of(config: Config, listed: Listed, place: Place) -> list[tuple[Step, Place]]:
    """Each with its place, in the configuration or in a request. Raises WrongAt."""
    places = [(*place, number) for number in range(len(listed))]
    return [(step_at(config, written, place), place) for written, place in zip(listed, places, strict=True)]


def for_callers(steps: Sequence[tuple[Step, Place]]) -> None:
    """Raises Forbidden for steps and options that only the configuration may have, those of a policy's guards too."""
    for step, place in steps:
        inner = [guard for _, guard in step.guards] if isinstance(step, Policy) else []
        for each in (step, *inner):
            param = param_of(map(str, place))
            if not type(each).choosable:
                raise Forbidden(f"{param}: this step is the configuration's alone", param=param)
            if reserved := sorted(type(each).operators & each.model_fields_set):
                raise Forbidden(f"{param}: the option {reserved[0]} is the configuration's alone", param=param)


def param_of(place: Iterable[str]) -> str:
    """("penstock", "steps", "0", "guard") -> penstock.steps[0].guard."""
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in place).lstrip(".")


def step_at(config: Config, written: Written, place: Place) -> Step:
    """The same as `parsed`, where a policy is the one of that name. Raises WrongAt."""
    step = parsed(written, place, STEPS)
    if not isinstance(step, Named):
        return step
    if step.name not in config.guards and step.name not in GUARDS:
        near = nearest(step.name, [*config.guards, *GUARDS])
        raise WrongAt((*map(str, place), GUARD), f"unknown guards {step.name!r}{near}")
    return policy_of(config, step.name)


def policy_of(config: Config, name: str) -> Policy:
    """A list in `guards`, several of a kind being `http`, `http.2`; else the guard of this name, with the options that
    it has by default. Raises WrongAt."""
    options = Options()
    guards: list[tuple[str, Guard]] = []
    for number, written in enumerate(config.guards.get(name, [{name: {}}])):
        place: Place = ("guards", name, number)
        step = parsed(written, place, IN_POLICIES, "guard")
        if isinstance(step, Guard):
            kind = next(iter(written))
            count = 1 + sum(type(step) is type(other) for _, other in guards)
            guards.append((kind if count == 1 else f"{kind}.{count}", step))
        else:
            options = step  # type: ignore[assignment]
    if not guards:
        raise WrongAt(("guards", name), f"{name} has no guard in it")
    return Policy(name=name, guards=tuple(guards), **options.model_dump())


def policies_of(config: Config, names: Sequence[str]) -> list[tuple[Step, Place]]:
    """Raises WrongAt."""
    return [(policy_of(config, name), ("guards", name)) for name in dict.fromkeys(names)]


Reached = Callable[[str, str], Chat]
Asked = Callable[[str, str, Mapping[str, Any], str], Awaitable[dict[str, Any]]]
"""Other served models, for steps, or for the guard of the name that comes last."""


class ServingParts:
    """`Parts` of a gateway: other served models are those of `names`, and `reached` when a request needs them; a
    caller who has chosen the steps may use those of `allowed`, where that is not all."""

    def __init__(
        self,
        folder: Path,
        names: Collection[str],
        reached: Reached,
        asked: Asked,
        allowed: Collection[str] | None = None,
    ) -> None:
        self.folder = folder
        self.named: set[str] = set()
        """The served models that steps have asked for."""
        self._names = names if allowed is None else [name for name in names if name in allowed]
        self._allowed = allowed
        self._reached = reached
        self._asked = asked
        self._guard = ""

    def for_guard(self, name: str) -> "ServingParts":
        parts = copy(self)
        parts._guard = name
        return parts

    def chat(self, model: str) -> Chat:
        self._check(model)
        return self._reached(model, self._guard)

    async def ask(self, model: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self._check(model)
        return await self._asked(model, path, body, self._guard)

    def _check(self, model: str) -> None:
        if self._allowed is not None and model not in self._allowed:
            raise Forbidden(f"this key may not use {model!r}, which its steps ask", param="penstock.steps")
        if model not in self._names:
            raise StartError(f"no model {model!r} is served here{nearest(model, list(self._names))}")
        self.named.add(model)


def no_circle(edges: Mapping[str, Collection[str]]) -> None:
    """`edges`: the served models that each one asks. Raises WrongAt where one would ask itself."""
    for start in edges:
        path, seen = [(start, iter(edges[start]))], {start}
        while path:
            after = next(path[-1][1], None)
            if after is None:
                path.pop()
            elif after == start:
                round_ = " -> ".join([*(name for name, _ in path), start])
                raise WrongAt(("models", start, "steps"), f"models ask one another in a circle: {round_}")
            elif after not in seen:
                seen.add(after)
                path.append((after, iter(edges.get(after, ()))))
