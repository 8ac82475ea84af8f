"""`penstock keys` and `penstock audit`: over the database itself, whether a gateway runs or not."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from penstock.shell import ConfigFile, actor, explained, fail, loaded

if TYPE_CHECKING:
    from penstock.audit import Verdict
    from penstock.keyring import Key, Keyring, Made
    from penstock.store import Store

keys = typer.Typer(
    help="Make, list, change, replace and withdraw API keys.", no_args_is_help=True, rich_markup_mode=None
)
audit = typer.Typer(help="Read and check the audit log.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME")]
Json = Annotated[bool, typer.Option("--json", help="For programs")]
Rpm = Annotated[int | None, typer.Option(help="Requests a minute")]
Tpm = Annotated[int | None, typer.Option(help="Tokens a minute, prompts and answers")]
Concurrent = Annotated[int | None, typer.Option(help="Requests at once")]
DailyTokens = Annotated[int | None, typer.Option(help="Tokens a day, UTC")]
MonthlyTokens = Annotated[int | None, typer.Option(help="Tokens a month, UTC")]
Priority = Annotated[int | None, typer.Option(help="Higher is served first when the engines are full")]
Models = Annotated[str | None, typer.Option(metavar="A,B", help="The served models it may use [default: all]")]
Scopes = Annotated[
    str | None, typer.Option(metavar="A,B", help="generate, metrics, admin, raw-fields, steps, any-media")
]
Expires = Annotated[str | None, typer.Option(metavar="30d", help="After so many s, m, h, d or w, from now")]
Guards = Annotated[
    str | None, typer.Option(help="The list in the configuration's `guards` that its requests pass, on every model")
]
T = TypeVar("T")

SHOWN_AT = "%Y-%m-%d %H:%M"
LIMITS = ("rpm", "tpm", "concurrent", "daily_tokens", "monthly_tokens")
HEADS = ["name", "id", "tenant", "state", "scopes", "models", "limits", "priority", "created", "expires", "guards"]
WIDE = 240


@keys.command("create")
def create(
    name: Annotated[str, typer.Option(help="Whom or what it is for")],
    tenant: Annotated[str | None, typer.Option(help="Keys of one tenant share caches [default: the name]")] = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrent: Concurrent = None,
    daily_tokens: DailyTokens = None,
    monthly_tokens: MonthlyTokens = None,
    priority: Priority = 0,
    models: Models = None,
    scopes: Scopes = "generate",
    expires: Expires = None,
    guards: Guards = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Make a key. It is printed this once, on standard output."""
    from penstock.keyring import wanted

    fields = {
        "name": name,
        "tenant": tenant,
        "rpm": rpm,
        "tpm": tpm,
        "concurrent": concurrent,
        "daily_tokens": daily_tokens,
        "monthly_tokens": monthly_tokens,
        "priority": priority,
        "models": models and listed(models),
        "scopes": scopes and listed(scopes),
        "expires": expires,
        "guards": guards,
    }
    with explained():
        asked = wanted({field: value for field, value in fields.items() if value is not None})
        warn_of(guards, config)
        tell(with_keyring(config, lambda ring, actor: ring.create(asked, actor)), json)


@keys.command("update")
def update(
    name: Name,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrent: Concurrent = None,
    daily_tokens: DailyTokens = None,
    monthly_tokens: MonthlyTokens = None,
    priority: Priority = None,
    models: Models = None,
    scopes: Scopes = None,
    expires: Expires = None,
    guards: Guards = None,
    unset: Annotated[
        str | None, typer.Option(metavar="A,B", help="What is taken away again: limits, models, expires, guards")
    ] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Change what a key may, within a second in every gateway; what is not named stays, and so does the key itself."""
    from penstock.keyring import rights

    fields = {
        "rpm": rpm,
        "tpm": tpm,
        "concurrent": concurrent,
        "daily_tokens": daily_tokens,
        "monthly_tokens": monthly_tokens,
        "priority": priority,
        "models": models and listed(models),
        "scopes": scopes and listed(scopes),
        "expires": expires,
        "guards": guards,
    }
    given = {field: value for field, value in fields.items() if value is not None}
    gone = [field.replace("-", "_") for field in listed(unset or "")]
    if both := [field for field in gone if field in given]:
        fail(f"--unset {both[0]}: it is given, too")
    with explained():
        asked = rights({**given, **dict.fromkeys(gone)})
        warn_of(guards, config)
        found = with_keyring(config, lambda ring, actor: ring.update(name, asked, actor))
    if json:
        return as_json([key.described() for key in found])
    for key in found:
        typer.echo(line(key))


@keys.command("list")
def show(
    all: Annotated[bool, typer.Option("--all", help="The revoked and expired ones, too")] = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """List the keys, without what would let anybody use them."""
    with explained():
        found = with_keyring(config, lambda ring, _: ring.all())
    shown = [key for key in found if all or key.state == "live"]
    if json:
        return as_json([key.described() for key in shown])
    table(HEADS, [row(key) for key in shown])


@keys.command("rotate")
def rotate(
    name: Name,
    overlap: Annotated[str, typer.Option(metavar="1h", help="How long the old key goes on")] = "0s",
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Make a new key with the same rights; the old one ends with the overlap."""
    from penstock.keyring import duration_s

    try:
        overlap_s = duration_s(overlap)
    except ValueError as error:
        fail(f"--overlap {overlap}: {error}")
    with explained():
        tell(with_keyring(config, lambda ring, actor: ring.rotate(name, overlap_s, actor)), json)


@keys.command("revoke")
def revoke(name: Name, config: ConfigFile = None) -> None:
    """Withdraw a key: within a second no gateway takes it any more."""
    with explained():
        gone = with_keyring(config, lambda ring, actor: ring.revoke(name, actor))
    typer.echo(f"revoked: {name} ({', '.join(key.id for key in gone)})")


@audit.command("verify")
def verify(
    noted: Annotated[
        str | None, typer.Option(metavar="NUMBER:DIGEST", help="What an earlier run has printed, kept elsewhere")
    ] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Read the whole audit log; exit with 1 and name the first entry that is not as it was written."""
    from dataclasses import asdict

    from penstock.audit import verify as verified

    number, _, digest = (noted or "0:").partition(":")
    if not number.isdigit() or bool(digest) != bool(int(number)):
        fail(f"--noted {noted}: write NUMBER:DIGEST, as `penstock audit verify` prints it")
    with explained():
        known = (int(number), digest) if digest else None
        verdict: Verdict = with_store(config, lambda store: verified(store, known))
    if json:
        as_json({"whole": verdict.broken is None, **asdict(verdict)})
    elif verdict.broken is None:
        typer.echo(f"{verdict.entries} entries, each as it was written.")
        typer.echo("Note this elsewhere; without it, a log that was written anew from its beginning looks whole:")
        typer.echo(f"{verdict.entries}:{verdict.head}")
    if verdict.broken is not None:
        fail(f"the audit log is broken at entry {verdict.broken}: {verdict.why}")


@audit.command("list")
def show_audit(
    last: Annotated[int, typer.Option(min=1, help="How many of the newest")] = 50,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Show what was done, by whom and when."""
    from dataclasses import asdict

    from penstock.audit import last as newest

    with explained():
        found = with_store(config, lambda store: newest(store, last))
    if json:
        return as_json([asdict(entry) for entry in found])
    heads = ["number", "at", "actor", "action", "subject", "details"]
    table(heads, [[str(getattr(entry, head)) for head in heads] for entry in found])


def with_store(config: ConfigFile, do: "Callable[[Store], Awaitable[T]]") -> T:
    """Raises PenstockError."""
    from penstock.errors import StateUnavailable
    from penstock.store import UNAVAILABLE, opened, reason

    tree = loaded(config)

    async def done() -> T:
        async with opened(tree.state.database) as store:
            return await do(store)

    try:
        return asyncio.run(done())
    except UNAVAILABLE as error:
        raise StateUnavailable(f"the database cannot be used: {reason(error)}") from error


def with_keyring(config: ConfigFile, do: "Callable[[Keyring, str], Awaitable[T]]") -> T:
    """`do` is given the name under which the audit log has who types. Raises PenstockError."""
    from penstock.keyring import Keyring, pepper

    secret = loaded(config).state.pepper

    async def done(store: "Store") -> T:
        return await do(Keyring(store, pepper(secret)), actor())

    return with_store(config, done)


def warn_of(guards: str | None, config: ConfigFile) -> None:
    """Guards that the configuration lacks let nothing pass."""
    if guards is not None and guards not in loaded(config).guards:
        typer.echo(
            f"the configuration has no guards {guards!r}: until it has, no request of this key is served", err=True
        )


def tell(made: "Made", json: bool) -> None:
    """The key alone goes to standard output: KEY=$(penstock keys create --name NAME)."""
    if json:
        return as_json({**made.stored.described(), "key": made.key})
    typer.echo(line(made.stored), err=True)
    typer.echo("This is the only time the key is shown:", err=True)
    typer.echo(made.key)


def line(key: "Key") -> str:
    """name: team-a, id: ..., scopes: generate"""
    return ", ".join(f"{head}: {cell}" for head, cell in zip(HEADS, row(key), strict=True) if cell)


def row(key: "Key") -> list[str]:
    said = key.described()
    limits = [f"{name} {said[name]}" for name in LIMITS if said[name] is not None]
    return [
        *(said[name] for name in ("name", "id", "tenant", "state")),
        ", ".join(said["scopes"]),
        ", ".join(said["models"] or ["all"]),
        ", ".join(limits),
        str(said["priority"]),
        moment(said["created_at"]),
        moment(said["expires_at"]),
        said["guards"] or "",
    ]


def moment(seconds: float | None) -> str:
    """In UTC; empty if there is none."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime(SHOWN_AT) if seconds is not None else ""


def listed(words: str) -> list[str]:
    """`a, b` -> ["a", "b"]."""
    return [word.strip() for word in words.split(",") if word.strip()]


def as_json(value: Any) -> None:
    import orjson

    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def table(heads: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*heads)
    for cells in rows:
        shown.add_row(*map(Text, cells))
    console = Console()
    if not console.is_terminal:  # a pipe has no width
        console = Console(width=WIDE)
    console.print(shown)
