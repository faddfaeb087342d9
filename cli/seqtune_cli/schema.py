"""`seqtune schema`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - Typer reads the annotations
from typing import Annotated

import typer

from seqtune_cli.words import print_json


def schema(file: Annotated[Path | None, typer.Argument(help="Write here instead of printing.")] = None) -> None:
    """Print the JSON Schema of recipes for editors."""
    from seqtune.config.schema import recipe_schema

    if file is None:
        print_json(recipe_schema())
    else:
        import json

        file.write_text(json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        typer.echo(f"wrote {file}; first line of a recipe: # yaml-language-server: $schema={file}")
