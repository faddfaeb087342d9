"""`seqtune schema`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - Typer reads the annotations
from typing import Annotated

import typer

from seqtune.errors import SeqtuneError
from seqtune_cli.words import print_json


def schema(file: Annotated[Path | None, typer.Argument(help="Write here instead of printing.")] = None) -> None:
    """Print the JSON Schema of recipes for editors."""
    from seqtune.config.schema import recipe_schema

    if file is None:
        print_json(recipe_schema())
    else:
        import json

        text = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
        try:
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise SeqtuneError(f"cannot write {file}: {error.strerror}") from error
        typer.echo(f"wrote {file}; first line of a recipe: # yaml-language-server: $schema={file}")
