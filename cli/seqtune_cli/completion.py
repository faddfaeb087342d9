"""What the shell offers for a half-written word: recipes, group options, fields. Reads file names and specs only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer  # noqa: TC002 - Typer reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterable

OWN_WORDS = ("recipe", "out", "run")


def complete(ctx: typer.Context, incomplete: str) -> list[str]:
    """The words that can follow.

    Bash cuts `recipe=gs` into `recipe`, `=` and `gs`, and wants only the last part back.
    """
    before = [word for value in ctx.params.values() if isinstance(value, list | tuple) for word in value]
    if before[-1:] == ["="]:
        return _starting(incomplete, _values(before[-2]))
    if not incomplete and before and "=" not in before[-1]:
        return _values(before[-1])
    key, sign, typed = incomplete.partition("=")
    if sign:
        return [f"{key}={value}" for value in _starting(typed, _values(key))]
    heads = _starting(incomplete, _fields() if "." in incomplete else (*OWN_WORDS, *_groups()))
    if len(heads) == 1 and (values := _values(heads[0])):
        return [f"{heads[0]}={value}" for value in values]
    return [f"{head}=" for head in heads]


def _starting(typed: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(typed)]


def _groups() -> list[str]:
    from seqtune_cli import catalogue

    return list(catalogue.groups())


def _values(key: str) -> list[str]:
    """What a recipe, a group or a field with few choices can be."""
    from seqtune_cli import catalogue

    if key == "recipe":
        return sorted(catalogue.recipes())
    if "." not in key:
        return sorted(catalogue.groups().get(key, {}))
    return _fields().get(key, [])


def _fields() -> dict[str, list[str]]:
    """Dotted paths of all fields, with their choices where they are few."""
    from seqtune.config.schema import recipe_schema

    found: dict[str, list[str]] = {}
    for key, definition in recipe_schema()["$defs"].items():
        axis = key.partition(".")[0]
        for name, field in definition.get("properties", {}).items():
            choices = found.setdefault(f"{axis}.{name}", [])
            for one in field.get("anyOf", []):
                booleans = ["true", "false"] if one.get("type") == "boolean" else []
                choices += [str(value) for value in one.get("enum", booleans) if str(value) not in choices]
    return found
