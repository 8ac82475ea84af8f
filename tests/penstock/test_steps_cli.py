"""Every step listed with its options."""

import json
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field
from typer.testing import CliRunner

from penstock.cli import app
from penstock.steps import Step
from penstock.steps_cli import described, typed
from serving.composing import IN_POLICIES, STEPS

ALL = {**STEPS, **IN_POLICIES}
assert not STEPS.keys() & IN_POLICIES.keys()


def steps(*words: str) -> str:
    done = CliRunner().invoke(app, ["steps", *words])
    assert done.exit_code == 0, done.output
    return done.output


class Made(Step):
    """Does something, for
    a test.

    More of it.
    """

    operators: ClassVar[frozenset[str]] = frozenset({"file"})
    file: str = Field(description="where from")
    how: Literal["this", "that"] = Field("this", description="the way")
    many: list[int] | None = Field(None, description="some numbers")


def test_a_step_is_told_with_its_options() -> None:
    made = described("made", Made)
    assert (made["name"], made["package"], made["does"]) == ("made", "tests", "Does something, for a test.")
    names = ("name", "type", "required", "default", "description", "configured")
    assert [tuple(option[name] for name in names) for option in made["options"]] == [
        ("file", "string", True, None, "where from", True),
        ("how", "this | that", False, "this", "the way", False),
        ("many", "list of integer | null", False, None, "some numbers", False),
    ]


def test_every_step_is_listed_and_every_option_says_what_it_is() -> None:
    found = json.loads(steps("--json"))
    assert [step["name"] for step in found] == [*sorted(STEPS), *sorted(IN_POLICIES)]
    for step in found:
        kind = ALL[step["name"]]
        written = [field.alias or name for name, field in kind.model_fields.items()]
        assert [option["name"] for option in step["options"]] == written
        assert step["does"]
        assert all(option["description"] for option in step["options"]), step["name"]


def test_the_table_says_the_same() -> None:
    shown = steps()
    assert all(f"{name} ({kind.__module__.partition('.')[0]})" in shown for name, kind in ALL.items())
    row = next(line for line in steps("self_refine").splitlines() if "rounds" in line and "integer" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        *("rounds", "integer >= 1, <= 8", "1", "how often the answer is criticized and written again"),
    ]
    assert "another yet." in steps("self_refine")  # the end of a long default
    assert "another yet." not in shown


def test_an_unknown_step_is_told_with_the_nearest() -> None:
    done = CliRunner().invoke(app, ["steps", "self_refin"])
    assert done.exit_code == 1
    assert "unknown step 'self_refin', did you mean 'self_refine'?" in done.output


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 2}, "number > 0, <= 2"),
        ({"const": "a"}, "a"),
        ({"anyOf": [{"$ref": "#/$defs/Judge"}, {"type": "null"}]}, "{model, rubric} | null"),
        ({}, "anything"),
    ],
)
def test_types_are_said(schema: dict[str, Any], said: str) -> None:
    assert typed(schema, {"Judge": {"properties": {"model": {}, "rubric": {}}}}) == said
