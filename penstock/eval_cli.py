"""`penstock eval`: a task put to a model, the perplexity of a text, two runs compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from penstock.shell import ConfigFile, explained, fail, loaded

if TYPE_CHECKING:
    from evals.compare import Comparison
    from evals.local import Local
    from evals.perplexity import Perplexity
    from evals.runs import Result, Run
    from evals.served import Served
    from evals.tasks import Task
    from penstock.references import Reference

EXIT_REGRESSION = 2


class TaskNamed(TyperGroup):
    """`penstock eval one_passage ...` is `penstock eval task one_passage ...`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["task", *args]
        return super().resolve_command(ctx, args)


evals = typer.Typer(cls=TaskNamed, help="Evaluate a model.", no_args_is_help=True, rich_markup_mode=None)

BaseUrl = Annotated[str, typer.Option(envvar="PENSTOCK_URL", help="Any OpenAI-compatible server, Penstock among them")]
ApiKey = Annotated[str | None, typer.Option(envvar="PENSTOCK_API_KEY", help="If the server asks for one")]
Json = Annotated[bool, typer.Option("--json", help="For programs")]
Sample = Annotated[Path, typer.Argument(exists=True, dir_okay=False)]

DEFAULT_URL = "http://127.0.0.1:8000"


@evals.command("task")
def run_task(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A family of the demo's items, or a file of JSON lines")],
    model: Annotated[
        list[str],
        typer.Option(
            help="Its name at the server, or registry:NAME@VERSION, started here; repeated, to compare several"
        ),
    ],
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first items alone")] = None,
    metric: Annotated[
        str | None, typer.Option(help="verbatim, exact, f1, number or contains [default: the task's]")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer [default: the task's]")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Of the sampling [default: the task's, 0]")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Items asked at once")] = 8,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run: every answer as a JSON line; gone on with if begun. Of several models, their folder"
        ),
    ] = None,
    config: ConfigFile = None,
    json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A table for a page, against the first model")] = False,
) -> None:
    """Put a task's items to a model (the word `task` may be left out); exit with 1 if any has no answer."""
    from dataclasses import replace

    from penstock.task import named

    if json and markdown:
        fail("--json or --markdown, not both")
    with explained():
        chosen = named(task, metric, limit)
        given = {"max_tokens": max_tokens, "temperature": temperature}
        asked_for = {name: value for name, value in given.items() if value is not None}
        chosen = replace(chosen, sampling={**chosen.sampling, **asked_for})
        files = files_of(model, out)
        runs = [run_of(chosen, one, files[one], base_url, api_key, config, concurrency) for one in model]
    if markdown:
        from evals.beside import beside

        typer.echo(beside(runs))
    elif json:
        found = [run.result.described() for run in runs]
        as_json(found if len(found) > 1 else found[0])
    else:
        table([run.result for run in runs])
    for run in runs:
        if errors := [record for record in run.records if record.error]:
            again = "run it again to ask them again" if out else "with --out FILE a second run asks these alone"
            whose = f" of {run.head.model}" if len(runs) > 1 else ""
            first = errors[0]
            fail(f"{len(errors)} of {len(run.records)} items{whose} have no answer; {again}. {first.id}: {first.error}")


@evals.command("perplexity")
def run_perplexity(
    file: Sample,
    model: Annotated[str, typer.Option(help="The model's name at the server, or a folder of weights")],
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens read at once")] = 1024,
    stride: Annotated[int | None, typer.Option(min=1, help="Tokens from window to window [default: half]")] = None,
    json: Json = False,
) -> None:
    """How well a model predicts a text: bits per byte, and perplexity by token, byte and word."""
    import asyncio

    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        fail(f"{file} is not UTF-8: {error}")
    with explained():
        found = asyncio.run(perplexity_of(text, source_of(model, base_url, api_key), window, stride))
    if json:
        return as_json({"file": str(file), "model": model, **found.described()})
    for line in perplexity_lines(found):
        typer.echo(line)


@evals.command("compare")
def run_compare(before: Sample, after: Sample, json: Json = False) -> None:
    """Is the second run worse than the first, item by item? Exit with 2 if it is."""
    from evals.compare import compare
    from evals.runs import Run

    with explained():
        found = compare(Run.read(before), Run.read(after))
    as_json(found.described()) if json else show(found)
    if found.verdict == "regression":
        raise typer.Exit(EXIT_REGRESSION)


def files_of(models: list[str], out: Path | None) -> "dict[str, Path | None]":
    """Where each model's run is kept: in `out`, of several models in a file for each there. Raises BadRequest."""
    from urllib.parse import quote

    from penstock.errors import BadRequest

    if len(set(models)) < len(models):
        raise BadRequest("--model: each name once")
    if out is None or len(models) == 1:
        return dict.fromkeys(models, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"--out {out}: of several models it is a folder, and {error.strerror or error}") from error
    return {model: out / f"{quote(model, safe=' @')}.jsonl" for model in models}


def run_of(
    task: "Task",
    model: str,
    out: Path | None,
    base_url: str,
    api_key: str | None,
    config: Path | None,
    concurrency: int,
) -> "Run":
    """All of it asked, or gone on with. Raises PenstockError."""
    import asyncio

    from evals.harness import head
    from evals.runs import Run
    from evals.served import rooted, what_is_served

    registered = version_of(model, config)
    if registered:
        begun = head(task, str(registered))
    else:
        begun = head(task, model, rooted(base_url), *asyncio.run(what_is_served(base_url, model, api_key)))
    run = Run.begin(begun, out)
    try:
        if registered:
            asyncio.run(asked_here(task, run, registered, config, concurrency))
        else:
            asyncio.run(asked(task, run, base_url, api_key, concurrency))
    finally:
        run.close()
    return run


def version_of(model: str, config: Path | None) -> "Reference | None":
    """`registry:demo@production` -> demo@7, so that a run that is gone on with asks the same weights."""
    from penstock.errors import BadRequest
    from penstock.references import Reference, is_reference
    from penstock.registry_cli import with_registry
    from registry.versions import find

    if not is_reference(model):
        return None
    try:
        reference = Reference.of(model)
    except ValueError as error:
        raise BadRequest(str(error)) from error
    return Reference(reference.name, with_registry(config, lambda store, _: find(store, reference)).number)


async def asked_here(task: "Task", run: "Run", reference: "Reference", config: Path | None, concurrency: int) -> None:
    """By an engine that is started for it, if anything is left to be asked."""
    from evals.harness import ask_all
    from penstock.log import silenced
    from penstock.trial import seated

    if len(run.answered) == len(task.items):
        return
    with silenced("engine"):
        async with seated(loaded(config), reference) as seat:
            await ask_all(task, seat.chat, run, concurrency)


async def asked(task: "Task", run: "Run", base_url: str, api_key: str | None, concurrency: int) -> None:
    """How far it is goes to standard error, where that is a terminal."""
    import sys

    from engine.openai import OpenAIChat
    from engine.pool import Pool
    from engine.replica import Replica
    from evals.harness import ask_all
    from evals.served import rooted
    from penstock.config import Routing

    # An item that fails says nothing about the next: nobody is left alone here.
    routing = Routing(breaker_failures=len(task.items) + 1)
    replica = Replica.at("server", rooted(base_url), api_key)
    replica.set_ready(True)

    def told(_: object) -> None:
        if sys.stderr.isatty():
            typer.echo(f"\r{len(run.answered)}/{len(task.items)}", nl=False, err=True)

    try:
        await ask_all(task, OpenAIChat(Pool("server", [replica], wait_s=0, routing=routing)), run, concurrency, told)
    finally:
        replica.close()
        if sys.stderr.isatty():
            typer.echo("\r", nl=False, err=True)


def source_of(model: str, base_url: str, api_key: str | None) -> "Local | Served":
    if Path(model).is_dir():
        from evals.local import Local

        return Local(Path(model))
    from evals.served import Served

    return Served(base_url, model, api_key)


async def perplexity_of(text: str, source: "Local | Served", window: int, stride: int | None) -> "Perplexity":
    from evals.perplexity import perplexity

    try:
        return await perplexity(text, source, window, stride)
    finally:
        source.close()


def perplexity_lines(found: "Perplexity") -> list[str]:
    return [
        f"bits per byte     {found.bits_per_byte:.4f}",
        f"token perplexity  {found.token_perplexity:.4f}",
        f"byte perplexity   {found.byte_perplexity:.4f}",
        f"word perplexity   {found.word_perplexity:.4g}",
        f"over {found.tokens} tokens, {found.bytes} bytes, {found.words} words; "
        f"windows of {found.length} tokens every {found.stride}",
    ]


def show(found: "Comparison") -> None:
    table([found.before, found.after])
    low, high = found.difference.interval
    typer.echo(f"difference {found.difference.mean:+.4f}, 95 % between {low:+.4f} and {high:+.4f}, ", nl=False)
    typer.echo(f"p = {found.difference.p:.4g}, paired over {found.before.n} items: {found.verdict}")


def table(results: "list[Result]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    heads = ["task", "model", "metric", "n", "errors", "cut", "score", "95 % interval", "tokens per correct", "latency"]
    shown = Table(*heads)
    for one in results:
        cells = [one.task, one.model, one.metric, str(one.n), str(one.errors), str(one.cut), f"{one.score:.4f}"]
        cells.append(f"{one.interval.low:.4f} to {one.interval.high:.4f}")
        cells.append(f"{one.tokens_per_correct:.1f}" if one.tokens_per_correct else "none is correct")
        cells.append(f"{one.latency_s:.3f} s" if one.latency_s is not None else "")
        shown.add_row(*map(Text, cells))
    console = Console()
    if not console.is_terminal:  # a pipe has no width
        console = Console(width=240)
    console.print(shown)


def as_json(value: Any) -> None:
    import orjson

    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
