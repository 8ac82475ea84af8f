"""A recipe: one typed tree, read from YAML and checked before anything runs.

Read without torch, so that it is refused at once and not after half a minute of imports. Paths in it are from where
the command runs, as `--out` is.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from penstock.errors import ConfigError
from penstock.source import explain, no_key_twice, not_yaml


class Part(BaseModel):
    """A part of a recipe; a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Tree = TypeVar("Tree", bound=Part)


def load(path: Path, kind: type[Tree]) -> Tree:
    """Raises ConfigError with everything that is wrong, a line each: `sft.yaml:4: unknown key ...`."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text)
        said = yaml.safe_load(text)
        no_key_twice(tree, path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(not_yaml(path, error)) from error
    if not isinstance(said, dict):
        raise ConfigError(
            f"{path}: expected `key: value` lines, found {type(said).__name__}: see recipes/ for examples"
        )
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(one, path, tree, {}, kind) for one in error.errors())) from error


def digests(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 by path, for the resolved recipe under `digests`: a run does not go on with other data unnoticed."""
    found = {}
    for path in files:
        try:
            with path.open("rb") as content:
                found[str(path)] = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise ConfigError(f"the data {path} cannot be read: {error.strerror}") from error
    return found
