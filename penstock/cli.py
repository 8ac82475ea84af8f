"""The `penstock` command. Each command imports what it needs when it runs, so that --help stays quick."""

import sys

from penstock import hangup

if sys.argv[1:2] == ["serve"]:  # not later: to import the rest takes long enough to be ended by a signal
    hangup.keep()

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from penstock import canary_cli, eval_cli, keys_cli, promote_cli, registry_cli, steps_cli
from penstock.references import Reference, is_reference
from penstock.shell import ConfigFile, explained, fail, loaded

app = typer.Typer(
    help="Serve open-weight language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(keys_cli.keys, name="keys")
app.add_typer(keys_cli.audit, name="audit")
app.add_typer(eval_cli.evals, name="eval")
app.add_typer(registry_cli.registry, name="registry")
app.add_typer(canary_cli.canary, name="canary")
app.command("promote")(promote_cli.promote)
app.command("gate")(promote_cli.ask_gate)
app.command("rollback")(promote_cli.rollback)
app.command("steps")(steps_cli.steps)

Url = Annotated[str, typer.Option(envvar="PENSTOCK_URL", help="The gateway")]
Key = Annotated[
    str | None, typer.Option("--key", envvar="PENSTOCK_API_KEY", help="An API key, if the gateway asks for one")
]

DEFAULT_URL = "http://127.0.0.1:8000"


@app.command()
def serve(
    model: Annotated[
        str | None,
        typer.Argument(help="A folder, registry:NAME@ALIAS, or a Hugging Face id [default: what is configured]"),
    ] = None,
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="The address to bind [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="The port [default: 8000]")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that answer on the port [default: 1]")] = None,
    upstream: Annotated[
        list[str] | None, typer.Option(metavar="NAME=URL[,URL...]", help="Serve NAME from servers that already run")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="`scripted`: set answers without any model, to try the gateway")
    ] = None,
) -> None:
    """Start the gateway, and the engines that the configuration names."""
    named = [*([started_here(model)] if model else []), *([single_engine(engine)] if engine else [])]
    named += [upstreams(upstream)] if upstream else []
    if len(named) + bool(config) > 1:
        fail("MODEL, --config, --upstream and --engine each say what is served: give one of them")
    overrides = {"gateway": given(host=host, port=port, workers=workers)} | (named[0] if named else {})
    from penstock import log, metrics
    from penstock.errors import ConfigError, StartError
    from penstock.source import Source, find

    source = Source(config or (None if named else find()), overrides)
    try:
        tree = source.load()
    except ConfigError as error:
        fail(error.message)

    log.configure(tree.log.level, tree.log.style, lost=lambda lines: metrics.log_lines_lost.inc(by=lines))
    from serving.run import run

    try:
        run(tree, source, say=typer.echo)
    except StartError as error:
        fail(error.message)
    finally:
        hangup.ignore()


@app.command()
def chat(
    message: Annotated[str | None, typer.Argument(help="Ask once; without it, a conversation")] = None,
    model: Annotated[str | None, typer.Option(help="A served model [default: the first]")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Talk to a served model; the answer streams to the terminal."""
    from penstock.terminal import converse

    with explained():
        converse(url, key, model, message)


@app.command()
def models(url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List the models that a running gateway serves."""
    from penstock.terminal import served_models

    with explained():
        for name in served_models(url, key):
            typer.echo(name)


@app.command("config")
def show_config(config: ConfigFile = None) -> None:
    """Print the resolved configuration: file, environment and defaults; secrets are masked."""
    import yaml

    typer.echo(yaml.safe_dump(loaded(config).model_dump(mode="json"), sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def usage(
    by: Annotated[str, typer.Option(help="What a row is: any of key, model, day, tenant")] = "key,model",
    since: Annotated[str | None, typer.Option(metavar="DAY", help="The first day, such as 2026-11-01 (UTC)")] = None,
    until: Annotated[str | None, typer.Option(metavar="DAY", help="The last day")] = None,
    key: Annotated[str | None, typer.Option(help="Of this key alone, by its name")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="As comma-separated values")] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON")] = False,
    config: ConfigFile = None,
) -> None:
    """Show how many tokens each key has used, by model and day."""
    from datetime import date

    from penstock.usage_cli import show
    from penstock.used import BYS

    names = [name for name in BYS if name in by.split(",")]
    if wrong := set(by.split(",")) - set(names):
        fail(f"--by {by}: {min(wrong)!r} is none of {', '.join(BYS)}")
    for day in (since, until):
        try:
            date.fromisoformat(day or "2026-01-01")
        except ValueError:
            fail(f"{day!r} is no day: write it as 2026-11-22")
    database = loaded(config).state.database
    with explained():
        style: Literal["table", "csv", "json"] = "csv" if csv else "json" if json else "table"
        show(database.get_secret_value() if database else None, names, style, since, until, key)


@app.command()
def train(
    recipe: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A training recipe, such as recipes/demo/pretrain.yaml")
    ],
    out: Annotated[Path, typer.Option(help="The folder for checkpoints, metrics and the final model")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in the folder")] = False,
) -> None:
    """Run a training recipe: learn a tokenizer, pre-train, fine-tune, align or quantize, as its `script` says."""
    from penstock.train_cli import run

    run(recipe, out, resume)


@app.command()
def sim(
    model: Annotated[str, typer.Option(help="The name it serves")] = "sim",
    host: Annotated[str, typer.Option(help="The address to bind")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any that is free")] = 8001,
    uds: Annotated[Path | None, typer.Option(help="A Unix socket instead")] = None,
    ttft_s: Annotated[float, typer.Option(min=0, help="Seconds to the first token")] = 0.0,
    itl_s: Annotated[float, typer.Option(min=0, help="Seconds between two tokens of a stream")] = 0.0,
    prefill: Annotated[float, typer.Option(min=0, help="Prompt tokens read per second; 0: at once")] = 0.0,
    slots: Annotated[int, typer.Option(min=1, help="How many requests generate at once")] = 256,
    queue: Annotated[int | None, typer.Option(min=0, help="How many may wait; more get 503 [default: any]")] = None,
    retry_after_s: Annotated[int | None, typer.Option(min=0, help="Retry-After of such a 503 [default: none]")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="The mean length of an answer")] = 32,
    max_model_len: Annotated[int, typer.Option(min=1, help="Tokens of a prompt with its answer")] = 32768,
    cache_blocks: Annotated[int, typer.Option(min=0, help="The prefix cache, in blocks of 16 tokens")] = 4096,
    keep_alive_s: Annotated[float, typer.Option(min=0, help="An idle connection is closed after it")] = 5.0,
    root: Annotated[str, typer.Option(help="What it was started with, as /v1/models tells [default: its name]")] = "",
    adapters: Annotated[Path | None, typer.Option(help="A directory of LoRA adapters made for it")] = None,
    fault: Annotated[
        list[str] | None, typer.Option(metavar="KIND[:NAME=VALUE,...]", help="What goes wrong; may be repeated")
    ] = None,
    list_faults: Annotated[bool, typer.Option("--list-faults", help="Print the kinds of faults")] = False,
) -> None:
    """Simulate an engine: vLLM's API with deterministic text, set speed, and faults on command."""
    import os

    from engine.sim import KINDS, FaultError, parse
    from engine.sim.run import serve as serve_simulator

    if list_faults:
        for name, kind in KINDS.items():
            typer.echo(f"{name:20}  {kind.says}")
        return
    try:
        serve_simulator(
            typer.echo,
            *map(parse, fault or ()),
            model=model,
            mean_tokens=tokens,
            max_model_len=max_model_len,
            ttft_s=ttft_s,
            itl_s=itl_s,
            prefill_tokens_per_s=prefill,
            slots=slots,
            queue=queue,
            cache_blocks=cache_blocks,
            retry_after_s=retry_after_s,
            keep_alive_s=keep_alive_s,
            host=host,
            port=port,
            uds=uds,
            root=root,
            adapters=adapters,
        )
    except FaultError as error:
        fail(f"--fault: {error}")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        fail(f"cannot listen on {uds or f'{host}:{port}'}: {reason}; choose another address")


@app.command()
def doctor() -> None:
    """Say what this machine can run, what is wrong, and how to mend it."""
    from rich.console import Console

    from engine.doctor import examine

    report = examine()
    console = Console()
    for finding in report:
        mark = {"good": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}[finding.level]
        console.print(f"{mark} {finding.subject}: {finding.says}", highlight=False)
    if any(finding.level == "bad" for finding in report):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print Penstock's version."""
    from penstock import __version__

    typer.echo(__version__)


def given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def started_here(model: str) -> dict[str, Any]:
    """`org/name` is served as `org/name`, a folder by its own name, `registry:demo@production` as `demo`."""
    path = Path(model).expanduser()
    name = path.resolve().name if path.is_dir() else model
    if is_reference(model):
        try:
            name = Reference.of(model).name
        except ValueError as error:
            fail(str(error))
    return {"engines": {"base": {"model": model}}, "models": {name: {"engine": "base"}}}


def upstreams(pairs: list[str]) -> dict[str, Any]:
    """["m=http://a,http://b"] -> one engine and one served model called m."""
    engines: dict[str, Any] = {}
    for pair in pairs:
        name, equals, urls = pair.partition("=")
        if not (name and equals and urls):
            fail(f"--upstream {pair}: write NAME=URL[,URL...], such as --upstream llama=http://10.0.0.7:8000")
        engines[name] = {"urls": urls.split(",")}
    return {"engines": engines, "models": {name: {"engine": name} for name in engines}}


def single_engine(kind: str) -> dict[str, Any]:
    if kind != "scripted":
        fail(f"--engine {kind}: only `scripted` needs no model; name models in a configuration file")
    return {"engines": {"scripted": {"kind": "scripted"}}, "models": {"scripted": {"engine": "scripted"}}}
