"""Where a configuration comes from: its file, the environment above it, the command line above both.

What is wrong with it is told with the file, the line and the nearest key that exists.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource, SettingsError

from penstock.config import DEMO, ENV_PREFIX, Config, WrongAt, nearest
from penstock.errors import ConfigError
from penstock.home import home


def find() -> Path | None:
    """The file used when none is named: ./penstock.yaml, else PENSTOCK_HOME/penstock.yaml, else none."""
    places = [Path("penstock.yaml"), home() / "penstock.yaml"]
    return next((place for place in places if place.is_file()), None)


Stamp = tuple[int, int, int]


class Source:
    """A configuration's file and what the command line lays above it: what it takes to read it again."""

    def __init__(self, path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.overrides = overrides
        self.read_at: Stamp | None = None

    def load(self) -> Config:
        """As `load` below."""
        self.read_at = self.stamp()
        return load(self.path, self.overrides)

    def again(self) -> Config:
        """The same once more. Raises ConfigError, also for what can be read only once, such as a pipe: its reader would
        wait without end."""
        self.read_at = self.stamp()
        if self.path is None or not self.path.is_file():
            raise ConfigError(f"{self.path} is not there, or no file that can be read again")
        return load(self.path, self.overrides)

    def wrong(self, error: WrongAt) -> ConfigError:
        """The same, told with the file and the line where it stands."""
        try:
            tree = yaml.compose(read(self.path)) if self.path else None
        except (ConfigError, yaml.YAMLError):
            tree = None
        line = line_of(tree, error.loc, whole=False)
        return ConfigError(f"{self.path}:{line}: {error}" if line else f"{'.'.join(error.loc)}: {error}")

    @property
    def is_empty(self) -> bool:
        """Raises ConfigError."""
        return self.path is not None and not read(self.path).strip()

    def stamp(self) -> Stamp | None:
        """Another one whenever the file is another, also after a rename; None while there is none."""
        if self.path is None:
            return None
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def load(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads `path`, lays the environment and then `overrides` (the command line) above it; the demo if none has models.

    Raises ConfigError with everything that is wrong, a line each.
    """
    text = read(path) if path else ""
    try:
        tree = yaml.compose(text)
        data = Loader(text).get_single_data() or {}
        no_key_twice(tree, path)
    except yaml.YAMLError as error:
        raise ConfigError(not_yaml(path, error)) from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(
            f"{path}: expected `key: value` lines at the top, found {type(data).__name__}: {str(data)[:80]}"
        )
    overrides = overrides or {}
    try:
        from_env = environment()
        if not {"engines", "models"} & (data.keys() | overrides.keys()) and "models" not in from_env:
            data = DEMO | data
        if path is not None:
            data = {"files": str(path.resolve().parent)} | data
        return Config(**merged(merged(data, from_env), overrides))
    except SettingsError as error:
        raise ConfigError(f"from the environment: {error}") from error
    except ValidationError as error:
        above = merged(from_env, overrides)
        wrong = [explain(detail, path, tree, above) for detail in error.errors()]
        raise ConfigError("\n".join(wrong)) from error


class Loader(yaml.SafeLoader):
    """Keys are names: YAML 1.1 takes `on: input` for a key that is true."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:bool":
                key.tag = "tag:yaml.org,2002:str"
        return node


def not_yaml(path: Path | None, error: yaml.YAMLError) -> str:
    """Without the line itself, which the library would show: there may be a secret in it."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    said = error.problem if isinstance(error, yaml.MarkedYAMLError) else "it has characters that YAML does not allow"
    return f"{path}{f':{mark.line + 1}' if mark else ''} is not YAML: {said}"


def environment() -> dict[str, Any]:
    """What the environment says of the tree. Raises ConfigError for a section that does not exist."""
    for name in os.environ:
        section, nested, _ = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if name.startswith(ENV_PREFIX) and nested and section not in Config.model_fields:
            raise ConfigError(
                f"from the environment: {name} names no section{nearest(section, list(Config.model_fields))}"
            )
    return EnvSettingsSource(Config)()


def no_key_twice(node: yaml.Node | None, path: Path | None) -> None:
    """YAML lets a later key take the place of an earlier one in silence. Raises ConfigError instead."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise ConfigError(f"{path}:{key.start_mark.line + 1}: the key {key.value!r} stands here a second time")
            seen.add(key.value)
            no_key_twice(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            no_key_twice(item, path)


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error}") from error


def merged(base: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """{a: {b: 1, c: 2}}, {a: {b: 3}} -> {a: {b: 3, c: 2}}."""
    result = dict(base)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return result


def explain(
    detail: ErrorDetails,
    path: Path | None,
    tree: yaml.Node | None,
    above: Mapping[str, Any],
    root: type[BaseModel] = Config,
) -> str:
    """One error as a person would say it: `penstock.yaml:4: unknown key 'prot', did you mean 'port'?`."""
    loc = detail["loc"] or getattr(detail.get("ctx", {}).get("error"), "loc", ())
    unknown = detail["type"] == "extra_forbidden"
    line = None if leads_through(above, loc) else line_of(tree, loc, whole=unknown)
    where = (
        f"{path}:{line}"
        if line
        else "from the environment or the command line"
        if loc
        else str(path or "configuration")
    )
    message = detail["msg"].removeprefix("Value error, ")
    if not unknown:
        return f"{where}: {'.'.join(map(str, loc))}{': ' if loc else ''}{message}"
    return f"{where}: unknown key {'.'.join(map(str, loc))!r}{nearest(str(loc[-1]), valid_keys(loc[:-1], root))}"


def leads_through(tree: Any, loc: tuple[int | str, ...]) -> bool:
    """Whether every step of `loc` is there: the environment or the command line has said this."""
    for step in loc:
        if not isinstance(tree, Mapping) or step not in tree:
            return False
        tree = tree[step]
    return bool(loc)


def line_of(node: yaml.Node | None, loc: tuple[int | str, ...], *, whole: bool) -> int | None:
    """The line, counted from 1, of the deepest key of `loc` in the file; `whole`: of all of it or None."""
    line = None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if pair is None:
                return None if whole else line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and str(part).isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
    return line


def valid_keys(loc: tuple[int | str, ...], root: type[BaseModel] = Config) -> list[str]:
    """The keys allowed at a place of the tree: `("engines", "base")` -> the fields of Engine."""
    place: Any = root
    for part in loc:
        if isinstance(place, type) and issubclass(place, BaseModel):
            place = place.model_fields[str(part)].annotation
        else:  # a dict of sections, `part` being a name of the user's; or a list of them
            place = get_args(place)[-1]
        if type(None) in get_args(place):
            place = get_args(place)[0]
    return list(place.model_fields) if isinstance(place, type) and issubclass(place, BaseModel) else []
