"""What the commands share: the configuration they read, and how they fail."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from penstock.config import Config

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="The configuration; default ./penstock.yaml")]


def loaded(path: Path | None, overrides: dict[str, Any] | None = None, *, file_wanted: bool = True) -> "Config":
    from penstock import source
    from penstock.errors import ConfigError

    try:
        return source.load(path or (source.find() if file_wanted else None), overrides)
    except ConfigError as error:
        fail(error.message)


def fail(message: str) -> NoReturn:
    typer.echo(f"penstock: {message}", err=True)
    raise typer.Exit(1)


def actor() -> str:
    """Who types, as the audit log has it."""
    import getpass

    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):
        return "cli"


class explained:
    """Turns a PenstockError inside the block into its message and exit status 1."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from penstock.errors import PenstockError

        if isinstance(error, PenstockError):
            fail(error.message)
