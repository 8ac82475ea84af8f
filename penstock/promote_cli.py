"""`penstock promote`, `gate`, `rollback`: an alias moves to a version that has shown what its gate asks, and back."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.keys_cli import as_json
from penstock.registry_cli import asked, told, with_registry
from penstock.shell import ConfigFile, actor, explained, fail, loaded

if TYPE_CHECKING:
    from evals.report import Finding, Report
    from penstock.config import Config
    from penstock.references import Reference
    from penstock.trial import Asking
    from registry.aliases import Move

EXIT_STOPPED = 2

Ref = Annotated[str, typer.Argument(metavar="NAME@VERSION", help="Such as demo@7")]
AliasName = Annotated[str, typer.Argument(metavar="ALIAS", help="Such as production")]
GateFile = Annotated[
    str | None,
    typer.Option("--gate", metavar="FILE", help="Or a name in `gates` [default: the model's there, or ours]"),
]
CandidateUrl = Annotated[str | None, typer.Option(metavar="URL", help="Where the version is served already")]
IncumbentUrl = Annotated[str | None, typer.Option(metavar="URL", help="Where the one that the alias points to is")]
ApiKey = Annotated[str | None, typer.Option(envvar="PENSTOCK_API_KEY", help="If these servers ask for one")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="With the engines' own logs, on standard error")]
Json = Annotated[bool, typer.Option("--json", help="For programs")]
Reason = Annotated[str, typer.Option(help="Why, for the history and the audit log")]


def promote(
    reference: Ref,
    alias: AliasName,
    gate: GateFile = None,
    canary: Annotated[
        float | None, typer.Option(metavar="PERCENT", help="Give it this share of the alias's requests first")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only ask the gate")] = False,
    force: Annotated[
        str | None, typer.Option(metavar="REASON", help="Move even if the gate stops it; the reason is kept")
    ] = None,
    expect: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Only if the alias points there now; `none`: if it is new")
    ] = None,
    candidate_url: CandidateUrl = None,
    incumbent_url: IncumbentUrl = None,
    api_key: ApiKey = None,
    verbose: Verbose = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Point an alias at a version if its gate lets it pass; exit with 2 if it does not."""
    from penstock.trial import Asking, Places

    if force is not None and not force.strip():
        fail("--force: say why, for whoever reads the audit log")
    if canary is not None and not 0 < canary <= 50:
        fail(f"--canary {canary:g}: a canary gets more than 0 and at most 50 percent")
    to, config_tree = asked(reference), loaded(config)
    places = Places(candidate_url, incumbent_url, api_key)
    with explained():
        number, now = standing(config, to, alias, expect)
        to = type(to)(to.name, number)
        if now == number and not dry_run:
            return done(f"{to.name}@{alias} points to version {number} already: nothing was changed", json)
        if now is None and canary is not None:
            fail(f"{to.name}@{alias} is not there yet, so no requests can be shared: promote it without --canary")
        report, passed = judged(config_tree, Asking(to, alias, gate, places), verbose, json, force, now)
    stopped = not passed and force is None
    if dry_run or stopped:
        done(None if json else says(to, alias, passed), json, report, moved=False)
        raise typer.Exit(0 if passed else EXIT_STOPPED)
    if force is not None:
        report["forced"] = force.strip()
    with explained():
        if canary is None:
            moved = move_to(config, to, alias, now, report)
            return done(told(moved) if moved else f"{to.name}@{alias} points there already", json, report)
        started = start_canary(config, to, alias, now, canary, report)
        done(started, json, report)


def ask_gate(
    reference: Ref,
    alias: Annotated[
        str | None, typer.Argument(metavar="[ALIAS]", help="Beside the version that this one points to")
    ] = None,
    gate: GateFile = None,
    candidate_url: CandidateUrl = None,
    incumbent_url: IncumbentUrl = None,
    api_key: ApiKey = None,
    verbose: Verbose = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Ask a version's gate and change nothing; exit with 2 if it would be stopped."""
    from penstock.trial import Asking, Places

    to, config_tree = asked(reference), loaded(config)
    with explained():
        number, _ = standing(config, to, alias or "", None)
        to = type(to)(to.name, number)
        asking = Asking(to, alias, gate, Places(candidate_url, incumbent_url, api_key))
        report, passed = judged(config_tree, asking, verbose, json, None, None)
    done(None if json else says(to, alias, passed), json, report, moved=False)
    raise typer.Exit(0 if passed else EXIT_STOPPED)


def rollback(
    reference: Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="Such as demo@production")],
    to: Annotated[int | None, typer.Option(min=1, metavar="VERSION", help="[default: the one before]")] = None,
    reason: Reason = "",
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Point an alias back at the version before, without a gate; while a canary runs, end that and nothing else."""
    from dataclasses import asdict

    from registry.aliases import Move
    from registry.rollback import roll_back

    alias = asked(reference)
    if not isinstance(alias.which, str):
        fail(f"{reference} is a version; an alias is rolled back, such as {alias.name}@production")
    which = alias.which
    with explained():
        found = with_registry(config, lambda store, _: roll_back(store, alias.name, which, actor(), to, reason))
    if json:
        plain = {name: getattr(found, name) for name in found.__slots__} if isinstance(found, Move) else asdict(found)
        return as_json(plain)
    if isinstance(found, Move):
        return typer.echo(told(found))
    typer.echo(f"the canary of {alias}, version {found.version}, has ended; {alias} stays at {found.from_version}")


def standing(config: Path | None, to: "Reference", alias: str, expect: str | None) -> tuple[int, int | None]:
    """The version's number, and the one that the alias points to. Raises PenstockError; Conflict for another one than
    is expected."""
    from penstock.errors import BadRequest, Conflict
    from penstock.references import check_alias
    from registry.aliases import all_aliases, points
    from registry.versions import find

    if alias:
        try:
            check_alias(alias)
        except ValueError as error:
            raise BadRequest(str(error)) from error

    async def found(store: Any, _: object) -> tuple[int, int | None]:
        number = (await find(store, to)).number
        return number, {each.alias: each.version for each in await all_aliases(store, to.name)}.get(alias)

    number, now = with_registry(config, found)
    if expect is not None:
        if expect != "none" and not (expect.isascii() and expect.isdigit()):
            fail(f"--expect {expect}: write the number of a version, or none")
        if now != (None if expect == "none" else int(expect)):
            raise Conflict(f"{to.name}@{alias} {points(now)}, and not, as expected, to {expect}")
    return number, now


def judged(
    tree: "Config", asking: "Asking", verbose: bool, json: bool, force: str | None, now: int | None
) -> tuple[dict[str, Any], bool]:
    """The report, and whether it passed. With `force` an error takes the report's place."""
    from dataclasses import replace

    from penstock import log
    from penstock.errors import PenstockError
    from penstock.trial import failure, tried

    if verbose:
        log.configure(tree.log.level, tree.log.style)
    heard = replace(asking, told=(lambda _: None) if json else show, doing=progress)
    try:
        with log.silenced("engine", not verbose):
            report: Report = asyncio.run(tried(tree, heard))
    except PenstockError as error:
        if force is None:
            raise
        typer.echo(f"penstock: the gate cannot be asked: {error.message}", err=True)
        return dict(failure(error, asking, now)), False
    finally:
        progress("")
    return report.described(), report.passed


def move_to(config: Path | None, to: "Reference", alias: str, now: int | None, report: dict[str, Any]) -> "Move | None":
    """Raises Conflict if the alias points elsewhere than to the version that the gate compared with."""
    from penstock.errors import Conflict
    from registry.aliases import move

    try:
        return with_registry(config, lambda store, _: move(store, alias, to, now, actor(), report))
    except Conflict as error:
        raise Conflict(f"{error.message}. The gate has compared with another version: run it again") from error


def start_canary(
    config: Path | None, to: "Reference", alias: str, now: int | None, percent: float, report: dict[str, Any]
) -> str:
    """Raises Conflict as `move_to` does."""
    from registry.canaries import start

    standing(config, to, alias, "none" if now is None else str(now))
    started = with_registry(
        config, lambda store, _: start(store, alias, to, percent, actor(), report=report, expected=now)
    )
    return f"{started.subject}: version {started.version} gets {percent:g} % of the requests of {started.from_version}"


def says(to: "Reference", alias: str | None, passed: bool) -> str:
    if passed:
        return f"{to} passes its gate; nothing was changed"
    return f"{to} is stopped by its gate" + (f"; {to.name}@{alias} stays where it is" if alias else "")


def show(finding: "Finding") -> None:
    progress("")
    colors: dict[str, Any] = {"passed": typer.colors.GREEN, "failed": typer.colors.RED, "skipped": typer.colors.YELLOW}
    color = None if finding.verdict == "skipped" and not finding.required else colors[finding.verdict]
    shown = finding.verdict if finding.verdict != "skipped" or finding.required else "-"
    typer.echo(f"{typer.style(f'{shown:8}', fg=color)} {finding.check:24} {finding.why}")


def progress(text: str) -> None:
    """On one line of a terminal, which the next takes the place of."""
    import sys

    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{text}", nl=False, err=True)


def done(text: str | None, json: bool, report: dict[str, Any] | None = None, *, moved: bool = True) -> None:
    if json:
        return as_json({**(report or {}), "moved": moved and report is not None})
    if text:
        typer.echo(text)
