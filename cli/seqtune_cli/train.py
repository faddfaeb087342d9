"""`seqtune train`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - Typer reads the annotations
from typing import Annotated

import typer

from seqtune_cli.words import Json, Words, plan_of, recipe_of, take


def train(
    words: Words = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Resolve and print the plan; train nothing.")] = False,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with an interrupted run folder.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the results.")] = False,
    as_json: Json = False,
) -> None:
    """Train the stages of a recipe.

    Example: seqtune train recipe=quickstart train.seed=1
    """
    from seqtune_cli import runs

    taken, rest = take(words, "recipe", "out")
    if resume is not None:
        given = [*(words or ()), *(["--dry-run"] if dry_run else [])]
        runs.resume(resume, given=given, quiet=quiet, as_json=as_json)
        return
    recipe = recipe_of(taken)
    composed, plan = plan_of(rest, recipe)
    if dry_run:
        runs.dry_run(plan, as_json=as_json)
    else:
        runs.start(plan, composed, out=taken.get("out"), quiet=quiet, as_json=as_json)
