"""Written principles: what answers are held to, by the step critique_revise and by training."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from penstock.errors import ConfigError
from penstock.source import explain, no_key_twice, not_yaml

OWN = Path(__file__).with_name("principles.yaml")


class Written(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Principle(Written):
    """`critique` asks how an answer falls short of it, `revision` for one that does not."""

    id: str = Field(min_length=1)
    critique: str = Field(min_length=1)
    revision: str = Field(min_length=1)


class Principles(Written):
    """A file of them."""

    principles: list[Principle] = Field(min_length=1)

    @model_validator(mode="after")
    def ids_differ(self) -> Self:
        ids = [principle.id for principle in self.principles]
        if twice := next((id_ for id_ in ids if ids.count(id_) > 1), None):
            raise ValueError(f"principles: the id {twice!r} stands here a second time")
        return self


def load(path: Path) -> Sequence[Principle]:
    """Raises ConfigError with everything that is wrong with the file, a line each."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the principles {path} cannot be read: {error}") from error
    try:
        tree, data = yaml.compose(text), yaml.safe_load(text)
        no_key_twice(tree, path)
    except yaml.YAMLError as error:
        raise ConfigError(not_yaml(path, error)) from error
    try:
        return Principles.model_validate({} if data is None else data).principles
    except ValidationError as error:
        wrong = [explain(detail, path, tree, {}, Principles) for detail in error.errors()]
        raise ConfigError("\n".join(wrong)) from error


@cache
def own() -> Sequence[Principle]:
    """Eight, which come with Penstock."""
    return load(OWN)


def drawn(principles: Sequence[Principle], count: int, seed: str) -> list[Principle]:
    """`count` different ones, the same for the same seed in every process."""
    return Random(seed).sample(list(principles), count)
