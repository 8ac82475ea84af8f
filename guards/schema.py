"""Answers that must be JSON of a schema."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from guards.guard import NOTHING, Guard, Look, Looked, Opinion, Unmasked
from penstock.errors import ConfigError
from penstock.steps import Parts


class Schema(Guard):
    """The answer's content is JSON, and as the schema has it. An answer that only calls tools has none."""

    operators: ClassVar[frozenset[str]] = frozenset({"file"})

    action: Unmasked = Field("block", description="block: the answer is not given; flag: it is only logged and counted")
    on: Literal["output"] = Field("output", description="there is no other way")
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="a JSON schema, draft 2020-12")
    file: str | None = Field(None, description="a file that has it")

    @model_validator(mode="after")
    def has_one(self) -> "Schema":
        if (self.schema_ is None) == (self.file is None):
            raise ValueError("one of `schema` and `file` is needed")
        return self

    def files(self, folder: Path) -> Sequence[Path]:
        return [folder / self.file] if self.file else []

    def look(self, parts: Parts) -> Look:
        from jsonschema import Draft202012Validator, SchemaError

        schema = self.schema_ if self.schema_ is not None else read(Path(parts.folder) / str(self.file))
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ConfigError(f"the schema cannot be used: {error.message}") from None
        validator = Draft202012Validator(schema)

        async def look(looked: Looked) -> Opinion:
            message = looked.answer.message if looked.answer else None
            if message is None or (message.tool_calls and not message.text):
                return NOTHING
            try:
                value = json.loads(message.text)
            except (ValueError, RecursionError):
                return Opinion({"not_json": 1.0})
            return NOTHING if validator.is_valid(value) else Opinion({"schema": 1.0})

        return look


def read(file: Path) -> dict[str, Any]:
    """Raises ConfigError."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the schema {file} cannot be read: {error}") from error
    return found
