"""`penstock steps`: what a served model and a policy can be composed of, with every option."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.shell import fail

if TYPE_CHECKING:
    from penstock.steps import Step

LONGEST_DEFAULT = 40
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def steps(
    name: Annotated[str | None, typer.Argument(metavar="STEP", help="One alone, its defaults in full")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs")] = False,
) -> None:
    """List the steps that a served model can have, and the guards of policies, with their options and defaults."""
    from penstock.config import nearest
    from serving.composing import IN_POLICIES, STEPS

    known = {**STEPS, **IN_POLICIES}
    if name is not None and name not in known:
        fail(f"unknown step {name!r}{nearest(name, list(known))}: there are {', '.join(sorted(known))}")
    names = [*sorted(STEPS), *sorted(IN_POLICIES)]
    found = [described(one, known[one]) for one in names if name in (None, one)]
    if json:
        import orjson

        return typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    show(found, LONGEST_DEFAULT if name is None else None)


def described(name: str, kind: "type[Step]") -> dict[str, Any]:
    """`required` options have no default; those that are `configured` no caller may set, who chooses a request's
    steps."""
    schema = kind.model_json_schema()
    required = schema.get("required", [])
    options = [
        {
            "name": option,
            "type": typed(said, schema.get("$defs", {})),
            "required": option in required,
            "default": said.get("default"),
            "description": said.get("description", ""),
            "configured": option in kind.operators or not kind.choosable,
        }
        for option, said in schema.get("properties", {}).items()
    ]
    does = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    return {"name": name, "package": kind.__module__.partition(".")[0], "does": does, "options": options}


def typed(schema: Mapping[str, Any], named: Mapping[str, Any] = MappingProxyType({})) -> str:
    """{"type": "integer", "minimum": 1} -> `integer >= 1`; alternatives with a bar between them, and of options within
    an option their names: `{model, rubric}`. `named`: what `$ref` leads to."""
    if "$ref" in schema:
        found = named[schema["$ref"].rpartition("/")[2]]
        return f"{{{', '.join(found['properties'])}}}" if "properties" in found else typed(found, named)
    if "anyOf" in schema:
        return " | ".join(typed(one, named) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {typed(schema.get('items', {}), named)}"
    bounds = [f"{sign} {schema[bound]:g}" for bound, sign in BOUNDS.items() if bound in schema]
    return " ".join([schema.get("type", "anything"), ", ".join(bounds)]).strip()


def show(steps: list[dict[str, Any]], longest: int | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:  # a pipe has no width
        console = Console(width=200)
    for step in steps:
        console.print(Text(f"{step['name']} ({step['package']})", style="bold"))
        console.print(Text(step["does"]))
        shown = Table("option", "type", "default", "description")
        for option in step["options"]:
            default = "required" if option["required"] else written(option["default"], longest)
            told = option["description"] + (" (in the configuration alone)" if option["configured"] else "")
            shown.add_row(*map(Text, (option["name"], option["type"], default, told)))
        console.print(shown if step["options"] else Text("no options"))
        console.print()


def written(default: Any, longest: int | None) -> str:
    """As YAML's reader would take it, cut where it is long."""
    import orjson

    said = default if isinstance(default, str) else orjson.dumps(default).decode()
    return f"{said[:longest]} ..." if longest and len(said) > longest else said
