"""The `seqtune` command. Help and completion load nothing heavy: bodies import what they run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqtune.errors import SeqtuneError
from seqtune_cli.copy import copy
from seqtune_cli.doctor import doctor
from seqtune_cli.eval import evaluate
from seqtune_cli.export import export
from seqtune_cli.list import list_names
from seqtune_cli.pack import pack
from seqtune_cli.schema import schema
from seqtune_cli.show import show
from seqtune_cli.train import train

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Fine-tune language models from recipe files.\n\nExample: seqtune train recipe=quickstart",
)

COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train,
    "eval": evaluate,
    "pack": pack,
    "show": show,
    "list": list_names,
    "copy": copy,
    "schema": schema,
    "doctor": doctor,
    "export": export,
}
for word, command in COMMANDS.items():
    app.command(word)(command)


def _version(asked: bool) -> None:
    if asked:
        from seqtune import __version__

        typer.echo(f"seqtune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the user can mend it, 1 a bug of ours, 130 interrupted."""
    # The parent of what Typer raises for a bad option; releases differ in where they keep it.
    usage_error: type[Any] = typer.BadParameter.__bases__[0]
    try:
        code = typer.main.get_command(app).main(args=arguments, prog_name="seqtune", standalone_mode=False)
    except SeqtuneError as error:
        from seqtune_cli.words import print_error

        print_error(error)
        sys.exit(2)
    except usage_error as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:
        typer.echo("interrupted", err=True)
    sys.exit(code if isinstance(code, int) else 0)
