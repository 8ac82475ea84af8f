"""`penstock canary`: versions that get a share of an alias's requests, how they do, and their end by hand."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.keys_cli import as_json, moment, table, with_store
from penstock.registry_cli import Json, Ref, asked
from penstock.shell import ConfigFile, actor, explained, fail

if TYPE_CHECKING:
    from evals.canary import Measure, Verdict
    from penstock.references import Reference
    from penstock.store import Store
    from registry.canaries import Canary, Rules

canary = typer.Typer(
    help="Try a version on a share of an alias's requests.", no_args_is_help=True, rich_markup_mode=None
)

Where = Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="Such as demo@production")]
Rule = Annotated[list[str] | None, typer.Option(metavar="NAME=NUMBER", help="Such as least_s=600; may be repeated")]


@canary.command()
def start(
    reference: Ref,
    alias: Annotated[str, typer.Argument(help="Such as production")],
    percent: Annotated[float, typer.Option(help="Its share of the alias's requests, up to 50")] = 10.0,
    rule: Rule = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Give a version a share of an alias's requests; the gateways judge it, and it goes on or back by itself."""
    from registry.canaries import start as started

    to = asked(reference)
    with explained():
        rules = rules_of(rule)
        try:
            made = with_store(config, lambda store: started(store, alias, to, percent, actor(), rules))
        except ValueError as error:
            fail(str(error))
    if json:
        return as_json(made.described())
    typer.echo(
        f"{made.subject}: {made.percent:g} % of the requests go to version {made.version}, "
        f"the others to version {made.from_version}; `penstock canary show {made.subject}` tells how it does"
    )


@canary.command("list")
def list_canaries(
    every: Annotated[bool, typer.Option("--all", help="Those that have ended, too")] = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """List the canaries that run."""
    from registry.canaries import all_canaries

    with explained():
        found = with_store(config, lambda store: all_canaries(store, ended=every))
    if json:
        return as_json([each.described() for each in found])
    heads = ["canary", "alias", "from", "to", "percent", "started", "by", "ended", "outcome"]
    table(heads, [row(each) for each in found])


@canary.command()
def show(where: Where, config: ConfigFile = None, json: Json = False) -> None:
    """Show both arms of an alias's canary side by side, and what would be decided now."""
    with explained():
        found, verdict = with_store(config, lambda store: judged(store, alias_of(where)))
    if json:
        return as_json({**found.described(), "now": verdict.report()})
    for line in described(found, verdict):
        typer.echo(line)
    arms = verdict.figures.stable.described(), verdict.figures.canary.described()
    heads = ["", f"version {found.from_version}", f"version {found.version} (canary)"]
    table(heads, [[name, *(shown(arm[name]) for arm in arms)] for name in arms[0]])
    table(["measure", "before", "canary", "between", "limit", ""], [compared(each) for each in verdict.measures])


@canary.command()
def stop(where: Where, config: ConfigFile = None) -> None:
    """End an alias's canary: all its requests go where the alias points."""
    from registry.canaries import end

    async def done(store: "Store") -> "tuple[Canary, Canary | None]":
        found, verdict = await judged(store, alias_of(where))
        return found, await end(store, found.id, "stopped", actor(), verdict.report()) if found.runs else None

    with explained():
        found, ended = with_store(config, done)
    if ended is None:
        fail(f"{found.subject} has no canary that runs")
    typer.echo(f"{found.subject}: the canary has ended, all requests go to version {found.from_version}")


@canary.command()
def promote(where: Where, config: ConfigFile = None) -> None:
    """Point the alias at its canary's version now, without waiting for the verdict."""
    from penstock.references import Reference
    from registry.aliases import move

    async def done(store: "Store") -> "Canary":
        found, verdict = await judged(store, alias_of(where))
        if not found.runs:
            fail(f"{found.subject} has no canary that runs")
        to = Reference(found.name, found.version)
        await move(store, found.alias, to, found.from_version, actor(), verdict.report(), canary=found.id)
        return found

    with explained():
        found = with_store(config, done)
    typer.echo(f"{found.subject}: from version {found.from_version}, to version {found.version}")


def rules_of(rules: list[str] | None) -> "Rules":
    """["least_s=600"] -> the others as usual. Raises BadRequest."""
    from registry.canaries import Rules

    given: dict[str, float] = {}
    for rule in rules or ():
        name, _, value = rule.partition("=")
        try:
            given[name] = int(value) if value.isascii() and value.isdigit() else float(value)
        except ValueError:
            fail(f"--rule {rule}: write NAME=NUMBER, such as --rule least_requests=500")
    return Rules.of(given)


def alias_of(text: str) -> "Reference":
    reference = asked(text)
    if isinstance(reference.which, int):
        fail(f"{text}: a canary is an alias's, so write NAME@ALIAS, such as {reference.name}@production")
    return reference


async def judged(store: "Store", where: "Reference") -> "tuple[Canary, Verdict]":
    """The canary that runs for the alias, else the last that did, and what its figures say. Raises NotFound."""
    from evals.canary import judge
    from registry.canaries import last
    from registry.canary_figures import read

    found = await last(store, where.name, str(where.which))
    until = found.ended_at or time.time()
    return found, judge(await read(store, found.id), found.rules, max(0.0, until - found.started_at))


def row(each: "Canary") -> list[str]:
    return [
        str(each.id),
        each.subject,
        str(each.from_version),
        str(each.version),
        f"{each.percent:g}",
        moment(each.started_at),
        each.by,
        moment(each.ended_at),
        f"{each.outcome}, by {each.ended_by}" if each.outcome else "",
    ]


def described(found: "Canary", verdict: "Verdict") -> list[str]:
    state = f"ended {moment(found.ended_at)}: {found.outcome}, by {found.ended_by}" if found.outcome else "running"
    lines = [
        f"{found.subject}: {found.percent:g} % to version {found.version}, the others to version {found.from_version}",
        f"started {moment(found.started_at)} by {found.by}, {state}",
    ]
    if found.outcome is None:
        lines.append(f"verdict so far: {verdict.decision}")
    reasons = (found.verdict or {}).get("reasons", ()) if found.outcome else verdict.reasons
    return lines + [f"  {reason}" for reason in reasons]


def compared(measure: "Measure") -> list[str]:
    between = f"{measure.low:.3g} to {measure.high:.3g}" if measure.low is not None else ""
    return [measure.name, shown(measure.stable), shown(measure.canary), between, f"{measure.limit:g}", measure.state]


def shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
