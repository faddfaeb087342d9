"""The words of a command line: `recipe=`, `out=`, `run=` belong to the command, the rest to Hydra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from seqtune.errors import SeqtuneError
from seqtune_cli.completion import complete

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seqtune.config.plan import Plan
    from seqtune.config.provenance import Composed


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE...",
        help="recipe=NAME|FILE, out=DIR, group swaps such as objective=gspo, and fields such as train.max_steps=100",
        autocompletion=complete,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def take(words: Sequence[str] | None, *own: str) -> tuple[dict[str, str], list[str]]:
    """Split off the words that belong to the command.

    Raises:
        SeqtuneError: One of them is given twice or without a value.
    """
    taken: dict[str, str] = {}
    rest: list[str] = []
    for word in words or ():
        key, sign, value = word.partition("=")
        if not sign or key not in own:
            rest.append(word)
        elif key in taken:
            raise SeqtuneError(f"{key} is given twice: {taken[key]} and {value}", where="command line")
        elif not value:
            raise SeqtuneError(f"{key}= has no value", where="command line", hint=f"write {key}=VALUE")
        else:
            taken[key] = value
    return taken, rest


def needed(taken: dict[str, str], key: str, example: str) -> str:
    """The value of a word the command cannot do without.

    Raises:
        SeqtuneError: It is missing.
    """
    if key not in taken:
        raise SeqtuneError(f"{key}= is missing", "command line", example)
    return taken[key]


def plan_of(words: Sequence[str], recipe: str) -> tuple[Composed, Plan]:
    """Compose a recipe and read it.

    Raises:
        SeqtuneError: As `compose` and `read`.
    """
    from seqtune.config.reading import read
    from seqtune_cli.compose import compose

    composed = compose(words, recipe)
    return composed, read(composed)


def recipe_of(taken: dict[str, str]) -> str:
    """The recipe the command line names.

    Raises:
        SeqtuneError: There is none; the hint lists what can be named.
    """
    from seqtune_cli import catalogue

    return needed(taken, "recipe", f"recipe=NAME ({', '.join(sorted(catalogue.recipes()))}), or recipe=FILE.yaml")


def print_error(error: SeqtuneError) -> None:
    """The problems of an error on stderr, in colour on a terminal."""
    for problem in error.problems:
        typer.secho(f"error: {problem.problem}", fg=typer.colors.RED, err=True)
        for label, text in (("where", problem.where), ("hint", problem.hint)):
            if text:
                typer.echo(f"  {label}: {text}", err=True)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    import json

    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False, default=str))
