"""Which gate a version has to pass: one that is named, else what the configuration has for its model, else ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import ValidationError

from penstock.config import nearest
from penstock.errors import ConfigError
from penstock.gates import Gate
from penstock.source import explain, no_key_twice, not_yaml

BUILT_IN = "built in"


class Chosen(NamedTuple):
    """`name` is the configuration's key, or the file."""

    name: str
    gate: Gate


def chosen(gates: Mapping[str, Gate], model: str, alias: str | None, named: str | None = None) -> Chosen:
    """`named`: a key of `gates`, or a file. Without it the first that is there of `MODEL@ALIAS`, `MODEL`, `default`.

    Raises ConfigError.
    """
    if named is not None and named not in gates:
        if not Path(named).is_file():
            raise ConfigError(f"no file and no gate of the configuration is called {named!r}{nearest(named, gates)}")
        return Chosen(named, load(Path(named)))
    names = [named] if named is not None else [f"{model}@{alias}", model, "default"]
    for name in names:
        if name in gates:
            gate = gates[name]
            return Chosen(name, load(Path(gate.file)) if gate.file else gate)
    return Chosen(BUILT_IN, Gate())


def load(path: Path) -> Gate:
    """Raises ConfigError with everything that is wrong, a line each."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text)
        data = yaml.safe_load(text) or {}
        no_key_twice(tree, path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the gate {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(not_yaml(path, error)) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a gate is `key: value` lines, such as those of recipes/demo/gate.yaml")
    if "file" in data:
        raise ConfigError(f"{path}: `file` is the configuration's; here stands the gate itself")
    try:
        return Gate(**data)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(one, path, tree, {}, Gate) for one in error.errors())) from error
