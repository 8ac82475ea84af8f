"""`penstock registry`: versions of models, over the database and the kept files themselves."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from penstock.keys_cli import as_json, moment, table
from penstock.shell import ConfigFile, actor, explained, fail, loaded

if TYPE_CHECKING:
    from rich.tree import Tree

    from penstock.references import Reference
    from penstock.store import Store
    from registry.adding import About
    from registry.aliases import Alias, Move
    from registry.artifacts import Artifacts
    from registry.canaries import Canary
    from registry.difference import Difference
    from registry.lineage import Node
    from registry.versions import Version

registry = typer.Typer(
    help="Keep versions of models, and the aliases that point to them.", no_args_is_help=True, rich_markup_mode=None
)

Ref = Annotated[str, typer.Argument(metavar="NAME@VERSION", help="Such as demo@7, or demo@production by its alias")]
Json = Annotated[bool, typer.Option("--json", help="For programs")]
Kind = Annotated[str | None, typer.Option(help="full, adapter, quantized or reward [default: told from the files]")]
Parent = Annotated[str | None, typer.Option(metavar="NAME@VERSION", help="The version that it was made from")]
Metric = Annotated[list[str] | None, typer.Option(metavar="NAME=NUMBER", help="May be repeated")]
Recipe = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="The recipe that it was made by")]
Data = Annotated[
    list[Path] | None, typer.Option(exists=True, dir_okay=False, help="A file that it was trained on; may be repeated")
]
Unsafe = Annotated[bool, typer.Option("--allow-unsafe", help="Take pickles and code, too, which can run on loading")]
T = TypeVar("T")


@registry.command("list")
def list_versions(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Of this model alone")] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """List the versions, and which aliases point to them."""
    from registry.aliases import all_aliases
    from registry.versions import all_versions

    async def done(store: "Store", _: object) -> "tuple[Any, Any]":
        return await all_versions(store, name), await all_aliases(store, name)

    with explained():
        versions, aliases = with_registry(config, done)
    if json:
        return as_json([{**brief(version), "aliases": pointing(aliases, version)} for version in versions])
    heads = ["version", "aliases", "kind", "parent", "size", "digest", "metrics", "created", "by"]
    table(heads, [row(version, pointing(aliases, version)) for version in versions])


@registry.command()
def show(reference: Ref, config: ConfigFile = None, json: Json = False) -> None:
    """Show a version: its files, digests and metrics, what it was made from, how its aliases moved."""
    from rich.console import Console

    from registry.aliases import all_aliases, history
    from registry.lineage import lineage
    from registry.versions import all_versions, find

    async def done(store: "Store", _: object) -> "tuple[Any, ...]":
        version = await find(store, asked(reference))
        tree = lineage(await all_versions(store), version)
        return version, tree, await all_aliases(store), await history(store, version.name)

    with explained():
        version, root, aliases, moves = with_registry(config, done)
    if json:
        return as_json(
            {
                **version.described(),
                "aliases": pointing(aliases, version),
                "moves": [{name: getattr(move, name) for name in move.__slots__} for move in moves],
            }
        )
    for line in described(version, pointing(aliases, version)):
        typer.echo(line)
    Console(highlight=False).print(drawn(root, version, aliases))
    for move in moves:
        typer.echo(told(move))


@registry.command()
def diff(old: Ref, new: Ref, config: ConfigFile = None, json: Json = False) -> None:
    """Show what differs between two versions: files, digests, metrics, data, recipe."""
    from dataclasses import asdict

    from registry.difference import difference
    from registry.versions import find

    async def done(store: "Store", _: object) -> "tuple[Any, Any]":
        return await find(store, asked(old)), await find(store, asked(new))

    with explained():
        found = difference(*with_registry(config, done))
    if json:
        return as_json(asdict(found))
    for line in compared(found):
        typer.echo(line)


@registry.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    directory: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="In Hugging Face's layout, or a training run's folder")
    ],
    kind: Kind = None,
    parent: Parent = None,
    metric: Metric = None,
    recipe: Recipe = None,
    data: Data = None,
    allow_unsafe: Unsafe = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Make a directory the next version of NAME, and print which that is.

    Of a run's folder it is the model, with the recipe, the data's digests, the last metrics, and as its parent the
    registered version that the run was begun from, an adapter or a base; options stand above these.
    """
    from registry.adding import add as added
    from registry.run_folder import is_run, note_version, of_run

    with explained():
        model, about = directory, said(name, kind, parent, metric, recipe, data, allow_unsafe)
        if is_run(directory):
            model, about = of_run(directory, about)
        version = with_registry(config, lambda store, kept: added(store, kept, model, about, actor()))
        tell(version, json)
        if model != directory and (why := note_version(directory, version.reference)):
            typer.echo(f"penstock: MLflow is not told of {version.reference}: {why}", err=True)


@registry.command("import")
def bring_in(
    source: Annotated[str, typer.Argument(help="A directory, or a Hugging Face id such as Qwen/Qwen2.5-0.5B-Instruct")],
    name: Annotated[str | None, typer.Option(help="[default: the last part of SOURCE]")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit at the hub")] = None,
    kind: Kind = None,
    parent: Parent = None,
    metric: Metric = None,
    allow_unsafe: Unsafe = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Take a model over from Hugging Face or from a directory, with the metrics that its card has."""
    from registry.exchange import bring_in as brought_in

    with explained():
        about = said(name or Path(source).expanduser().resolve().name, kind, parent, metric, None, None, allow_unsafe)
        tell(with_registry(config, lambda store, kept: brought_in(store, kept, source, about, actor(), revision)), json)


@registry.command()
def export(
    reference: Ref,
    directory: Annotated[Path, typer.Argument(help="Made here; must be empty or not there")],
    base_model: Annotated[str | None, typer.Option(metavar="ID", help="By which id its parent is known there")] = None,
    config: ConfigFile = None,
) -> None:
    """Write a version as Hugging Face has it, with a model card."""
    from registry.exchange import export as exported

    with explained():
        version = with_registry(
            config, lambda store, kept: exported(store, kept, asked(reference), directory, base_model)
        )
    typer.echo(f"{version.reference} is in {directory}")


@registry.command()
def tag(
    reference: Ref,
    alias: Annotated[str, typer.Argument(help="Such as production")],
    expect: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Only if it points there now, `none`: if it is new [default: wherever]"),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Point an alias at a version by hand. A canary of the alias ends."""
    from registry.aliases import all_aliases, move
    from registry.canaries import ended_with

    to = asked(reference)
    if expect not in (None, "none") and not (expect.isascii() and expect.isdigit()):
        fail(f"--expect {expect}: write the number of a version, or none")

    async def done(store: "Store", _: object) -> "tuple[Move | None, Canary | None]":
        now = {each.alias: each.version for each in await all_aliases(store, to.name)}.get(alias)
        expected = now if expect is None else None if expect == "none" else int(expect)
        moved = await move(store, alias, to, expected, actor())
        return moved, await ended_with(store, moved.change) if moved else None

    with explained():
        try:
            moved, canary = with_registry(config, done)
        except ValueError as error:
            fail(str(error))
    typer.echo(told(moved) if moved else f"{to.name}@{alias} points there already: nothing was changed")
    if canary:
        typer.echo(canary.end)


@registry.command()
def gc(
    grace: Annotated[str, typer.Option(metavar="1d", help="Spare what is younger: s, m, h, d or w")] = "1d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted")] = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Delete the kept files that no version refers to."""
    from penstock.keyring import duration_s
    from registry.collecting import collect

    try:
        grace_s = duration_s(grace)
    except ValueError as error:
        fail(f"--grace {grace}: {error}")
    with explained():
        done = with_registry(config, lambda store, kept: collect(store, kept, grace_s, actor(), dry_run=dry_run))
    if json:
        said = {"deleted": [file.sha256 for file in done.files], "bytes": done.size, "dry_run": dry_run}
        return as_json({**said, "unknown_versions": sorted(done.strangers)})
    for file in done.files:
        typer.echo(f"{file.sha256}  {sized(file.size)}")
    verb = "would be deleted" if dry_run else "deleted"
    typer.echo(f"{len(done.files)} files ({sized(done.size)}) {verb}, {done.kept} kept")
    if done.strangers:
        typer.echo(
            f"{len(done.strangers)} manifests beside the files are of versions that this database does not have: was "
            "it put back to an earlier state, or does another one keep its files there? Their files are spared",
            err=True,
        )


def with_registry(config: Path | None, do: "Callable[[Store, Artifacts], Awaitable[T]]") -> T:
    """Raises PenstockError."""
    from penstock.errors import StateUnavailable
    from penstock.store import UNAVAILABLE, opened, reason
    from registry.artifacts import artifacts_at

    tree = loaded(config)

    async def done() -> T:
        async with opened(tree.state.database) as store:
            return await do(store, artifacts_at(tree.registry.artifacts))

    try:
        return asyncio.run(done())
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StateUnavailable(f"the registry cannot be used: {error.strerror or error}{where}") from error
    except UNAVAILABLE as error:
        raise StateUnavailable(f"the database cannot be used: {reason(error)}") from error


def asked(text: str) -> "Reference":
    from penstock.references import Reference

    try:
        return Reference.of(text)
    except ValueError as error:
        fail(str(error))


def said(
    name: str,
    kind: str | None,
    parent: str | None,
    metrics: list[str] | None,
    recipe: Path | None,
    data: list[Path] | None,
    allow_unsafe: bool,
) -> "About":
    """Raises BadRequest."""
    from registry.adding import About
    from registry.artifacts import measured
    from registry.directory import opened, text
    from registry.kinds import KINDS

    known = next((one for one in KINDS if one == kind), None)
    if kind and not known:
        fail(f"--kind {kind}: take one of {', '.join(KINDS)}")
    digests = {}
    for file in data or []:
        with opened(file.resolve()) as reading:
            digests[file.name] = measured(reading).sha256
    return About(
        name=name,
        kind=known,
        parent=parent,
        recipe=text(recipe.resolve()) if recipe else None,
        data=digests,
        metrics=dict(map(number, metrics or [])),
        allow_unsafe=allow_unsafe,
    )


def number(metric: str) -> tuple[str, float]:
    name, _, value = metric.partition("=")
    try:
        return name, float(value)
    except ValueError:
        fail(f"--metric {metric}: write NAME=NUMBER, such as --metric exact=0.95")


def tell(version: "Version", json: bool) -> None:
    """The reference alone goes to standard output: NEW=$(penstock registry add NAME DIRECTORY)."""
    if json:
        return as_json(version.described())
    details = f"{version.kind}, {len(version.files.files)} files, {sized(version.files.size)}, {version.digest}"
    typer.echo(details, err=True)
    typer.echo(version.reference)


def brief(version: "Version") -> dict[str, Any]:
    """Without its long parts."""
    return {name: what for name, what in version.described().items() if name not in ("files", "card", "recipe")}


def row(version: "Version", aliases: list[str]) -> list[str]:
    return [
        version.reference,
        ", ".join(aliases),
        version.kind,
        version.parent or "",
        sized(version.files.size),
        version.digest[:12],
        ", ".join(f"{name} {value:g}" for name, value in version.metrics.items()),
        moment(version.created_at),
        version.by,
    ]


def described(version: "Version", aliases: list[str]) -> list[str]:
    facts = {
        "version": " ".join([version.reference, *(f"({alias})" for alias in aliases)]),
        "kind": version.kind,
        "origin": version.origin,
        "digest": version.digest,
        "template": version.template,
        "tokenizer": version.tokenizer,
        "added": f"{moment(version.created_at)} by {version.by}",
    }
    facts |= {f"metric {name}": f"{value:g}" for name, value in version.metrics.items()}
    facts |= {f"data {name}": digest for name, digest in version.data.items()}
    lines = [f"{name + ':':12} {value}" for name, value in facts.items() if value]
    return lines + [f"{file.sha256}  {sized(file.size):>9}  {path}" for path, file in version.files]


def drawn(node: "Node", shown: "Version", aliases: "list[Alias]") -> "Tree":
    from rich.text import Text
    from rich.tree import Tree

    def label(version: "Version") -> Text:
        names = "".join(f" ({alias})" for alias in pointing(aliases, version))
        text = f"{version.reference} {version.kind}{names}"
        return Text(text + (" <-" if version.reference == shown.reference else ""))

    def grow(tree: Tree, node: "Node") -> Tree:
        for child in node.children:
            grow(tree.add(label(child.version)), child)
        return tree

    return grow(Tree(label(node.version)), node)


def told(move: "Move") -> str:
    before = f"from version {move.from_version}" if move.from_version else "new"
    return f"{moment(move.at)} {move.name}@{move.alias}: {before}, to version {move.to_version}, by {move.by}"


def compared(found: "Difference") -> list[str]:
    if found.is_empty:
        return ["no difference"]
    pairs = {**found.fields, **found.metrics, **found.data}
    lines = [f"{name}: {was(before)} -> {was(after)}" for name, (before, after) in pairs.items()]
    for mark, paths in (("+", found.added), ("-", found.removed), ("~", found.changed)):
        lines += [f"{mark} {path}" for path in paths]
    return lines + found.recipe


def was(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def pointing(aliases: "list[Alias]", version: "Version") -> list[str]:
    return [alias.alias for alias in aliases if (alias.name, alias.version) == (version.name, version.number)]


def sized(size: int) -> str:
    """3794088 -> 3.6 MiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
