"""`seqtune copy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seqtune.errors import SeqtuneError, did_you_mean
from seqtune_cli.completion import complete


def copy(
    recipe: Annotated[str, typer.Argument(metavar="recipe=NAME", autocompletion=complete)],
    file: Annotated[Path | None, typer.Argument(help="Where to; ./NAME.yaml when left out.")] = None,
) -> None:
    """Copy a recipe to a local file to edit.

    Example: seqtune copy recipe=gspo_tiny mine.yaml
    """
    from seqtune_cli import catalogue

    name, known = recipe.removeprefix("recipe="), catalogue.recipes()
    if name not in known:
        raise SeqtuneError(f"recipe: there is no recipe '{name}'", "command line", did_you_mean(name, known))
    target = file or Path(f"{name}.yaml")
    try:
        with target.open("x", encoding="utf-8") as handle:
            handle.write(known[name].file.read_text(encoding="utf-8"))
    except FileExistsError:
        raise SeqtuneError(f"{target} exists already", hint=f"name another file: seqtune copy {recipe} FILE") from None
    except OSError as error:
        raise SeqtuneError(f"cannot write {target}: {error.strerror}") from error
    typer.echo(f"wrote {target}; run it with: seqtune train recipe={target if '/' in str(target) else f'./{target}'}")
