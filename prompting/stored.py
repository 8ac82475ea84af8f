"""Stored prompts: turns kept in files by name and version, rendered with the caller's variables."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from penstock.chat import Chat, ChatRequest, Emit, Message, Reply
from penstock.config import nearest
from penstock.errors import BadRequest, StartError
from penstock.steps import Around, Parts, Step
from prompting.asking import chats_only
from prompting.instruct import opened, preceded

SUFFIXES = (".yaml", ".yml", ".md")
FRONT = re.compile(r"\A---[ \t]*\n(.*?\n)---[ \t]*(?:\n|\Z)(.*)\Z", re.DOTALL)


def as_text(version: Any) -> Any:
    return str(version) if isinstance(version, int | float) and not isinstance(version, bool) else version


class Asked(BaseModel):
    """What names a prompt, in a request as in the configuration: OpenAI's `prompt` of /v1/responses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="of the prompt: the directory's name")
    version: Annotated[str | None, BeforeValidator(as_text)] = Field(None, description="[default: the highest]")
    variables: dict[str, Any] | None = Field(None, description="texts, numbers or truth values by name")


class StoredPrompt(Step):
    """The request's field `prompt: {id, version, variables}` becomes turns before the conversation, the prompt's system
    turn first. All are read when the configuration is taken; a request names one of them, and never a file."""

    choosable: ClassVar[bool] = False
    operators: ClassVar[frozenset[str]] = frozenset({"folder", "variable_characters"})

    folder: str = Field("prompts", min_length=1, description="where they are: ID/VERSION.yaml or ID/VERSION.md")
    default: Asked | None = Field(None, description="{id, version, variables} for requests that name none")
    variable_characters: int = Field(10_000, ge=1, description="of all variables of a request together, at most")

    def files(self, folder: Path) -> Sequence[Path]:
        return [folder / self.folder, *files_in(folder / self.folder)]

    def around(self, parts: Parts) -> Around:
        shelf = Shelf(parts.folder / self.folder)
        if self.default:
            try:
                self._turned(shelf, self.default, [])
            except BadRequest as error:
                raise StartError(f"prompt.default: {error.message}") from error

        def wrap(chat: Chat) -> Chat:
            async def prompted(request: ChatRequest, emit: Emit) -> Reply:
                chats_only(request, "prompt")
                given = getattr(request, "prompt", None)
                asked = self.default if given is None else understood(given)
                if asked is None:
                    return await chat(request, emit)
                turns = self._turned(shelf, asked, request.messages)
                return await chat(request.with_messages(turns).but(prompt=None), emit)

            return prompted

        return wrap

    def _turned(self, shelf: "Shelf", asked: Asked, turns: list[Message]) -> list[Message]:
        prompt = shelf.find(asked.id, asked.version)
        values = prompt.values(asked.variables or {}, self.variable_characters)
        added = [Message(role=role, content=text.render(values)) for role, text in prompt.turns]
        whole = opened(added, turns)
        told = prompt.system.render(values) if prompt.system else ""
        return preceded(told, whole) if told else whole


def understood(given: Any) -> Asked:
    try:
        return Asked.model_validate(given)
    except ValidationError:
        raise BadRequest("prompt is {id: ..., version: ..., variables: {...}}", param="prompt") from None


class Variable(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    default: Any = Field(None, description="its value where none is given; without one it must be given")
    description: str = ""

    @property
    def is_needed(self) -> bool:
        return "default" not in self.model_fields_set


class Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["user", "assistant"]
    content: str


class Written(BaseModel):
    """A prompt's file. Of a .md the text below its front matter is `system`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    variables: dict[str, Variable | None] = {}
    system: str | None = None
    messages: list[Turn] = []


class Prompt:
    """One version. Raises StartError, with its file, for what cannot be rendered."""

    def __init__(self, path: Path) -> None:
        from prompting.templates import Text  # Jinja2 takes a while, and few configurations have prompts

        written = read(path)
        self.variables = {name: variable or Variable() for name, variable in written.variables.items()}
        self.system = Text(written.system, f"{path}, system") if written.system else None
        self.turns = [
            (turn.role, Text(turn.content, f"{path}, message {number}"))
            for number, turn in enumerate(written.messages, 1)
        ]
        texts = [*([self.system] if self.system else []), *(text for _, text in self.turns)]
        if not texts:
            raise StartError(f"{path} has neither system nor messages")
        for name in sorted(frozenset().union(*(text.names for text in texts)) - self.variables.keys()):
            raise StartError(f"{path} uses {name!r}, which is none of its variables{nearest(name, self.variables)}")

    def values(self, given: Mapping[str, Any], characters: int) -> dict[str, Any]:
        """Raises BadRequest for variables that it does not have, or needs."""
        values = {name: value_of(name, value) for name, value in given.items()}
        for name in values:
            if name not in self.variables:
                known = nearest(name, self.variables) or f": it has {', '.join(self.variables) or 'none'}"
                raise BadRequest(f"the prompt has no variable {name!r}{known}", param=f"prompt.variables.{name}")
        if sum(len(str(value)) for value in values.values()) > characters:
            raise BadRequest(f"the variables have more than {characters} characters", param="prompt.variables")
        missing = [name for name, variable in self.variables.items() if variable.is_needed and name not in values]
        if missing:
            raise BadRequest(f"the prompt needs the variable {missing[0]!r}", param=f"prompt.variables.{missing[0]}")
        return {name: variable.default for name, variable in self.variables.items()} | values


def value_of(name: str, value: Any) -> str | float | bool:
    if isinstance(value, dict) and value.get("type") == "input_text":
        value = value.get("text")
    if isinstance(value, str | int | float):
        return value
    raise BadRequest(
        f"the variable {name!r} is neither a text nor a number nor true or false", param=f"prompt.variables.{name}"
    )


class Shelf:
    """All prompts of a directory. Raises StartError for one that cannot be used."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise StartError(f"the directory of prompts {folder} is not there")
        self._prompts: dict[str, dict[str, Prompt]] = {}
        for path in files_in(folder):
            versions = self._prompts.setdefault(path.parent.name, {})
            if path.stem in versions:
                raise StartError(f"{path} is a version that is there already, under another ending")
            versions[path.stem] = Prompt(path)

    def find(self, id_: str, version: str | None) -> Prompt:
        """Raises BadRequest."""
        versions = self._prompts.get(id_)
        if versions is None:
            raise BadRequest(f"there is no prompt {id_!r}{nearest(id_, self._prompts)}", param="prompt.id")
        if version is None:
            return versions[max(versions, key=natural)]
        if version not in versions:
            known = ", ".join(sorted(versions, key=natural))
            raise BadRequest(f"the prompt {id_!r} has no version {version!r}: it has {known}", param="prompt.version")
        return versions[version]


def files_in(folder: Path) -> list[Path]:
    """Those that are prompts, ID/VERSION.yaml."""
    return [path for path in sorted(folder.glob("*/*")) if path.suffix in SUFFIXES and path.is_file()]


def natural(version: str) -> list[tuple[int, str]]:
    """`10` after `9`, `1.10` after `1.9`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", version) if part]


def read(path: Path) -> Written:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".md":
            return Written.model_validate(yaml.safe_load(text))
        front = FRONT.match(text)
        fields = (yaml.safe_load(front[1]) or {}) if front else {}
        return Written.model_validate({"system": front[2] if front else text} | fields)
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"the prompt {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise StartError(f"the prompt {path} is no YAML: {error}") from error
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, detail["loc"]))
        unknown = nearest(where, list(Written.model_fields)) if detail["type"] == "extra_forbidden" else ""
        raise StartError(f"the prompt {path}: {where}: {detail['msg']}{unknown}") from None
