"""`seqtune list`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from seqtune_cli.words import Json, print_json


class Kind(StrEnum):
    """What can be listed."""

    recipes = "recipes"
    objectives = "objectives"
    packings = "packings"
    pefts = "pefts"
    parallel = "parallel"
    rewards = "rewards"
    tools = "tools"
    formats = "formats"


REGISTRIES = {
    Kind.objectives: "objective",
    Kind.packings: "packing",
    Kind.pefts: "peft",
    Kind.parallel: "parallel",
    Kind.rewards: "reward",
}


def list_names(kind: Annotated[Kind | None, typer.Argument()] = None, as_json: Json = False) -> None:
    """List recipes and what they can name."""
    from seqtune_cli import render

    found = {one.value: rows(one) for one in ([kind] if kind else Kind)}
    if as_json:
        print_json(found)
    else:
        render.listed(found)


def rows(kind: Kind) -> list[dict[str, Any]]:
    """Name, origin and one line of everything of a kind."""
    if kind is Kind.recipes:
        from seqtune_cli import catalogue

        listed = [recipe for _, recipe in sorted(catalogue.recipes().items())]
        return [{"name": one.name, "origin": one.origin, "about": one.summary} for one in listed]
    if kind is Kind.formats:
        from seqtune.data.formats import FORMATS

        return [{"name": f.name, "origin": "seqtune", "about": f.summary} for f in FORMATS.values()]
    from seqtune.config.reading import registry
    from seqtune.rollout import TOOLS

    names = TOOLS if kind is Kind.tools else registry(REGISTRIES[kind])
    entries = [names.entries[name] for name in names]
    return [{"name": e.name, "origin": e.origin, "about": (e.load().__doc__ or "").split("\n")[0]} for e in entries]
