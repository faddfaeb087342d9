"""Write the expected plan of every shipped recipe anew: `make golden`, then read the diff."""

from __future__ import annotations

from pathlib import Path

from shipped_recipes import Recipe, shipped

import seqtune_recipes
from seqtune.config.reading import dump, read
from seqtune_cli.compose import compose

FOLDER = Path(__file__).parents[1] / "golden" / "plans"
RECIPES = shipped(Path(seqtune_recipes.__file__).parent)


def plan_of(recipe: Recipe) -> str:
    """The plan of a recipe started as its header says."""
    return dump(read(compose(recipe.words, recipe.name)))


def write() -> None:
    """Write every plan, and remove those of recipes that are gone."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file in FOLDER.glob("*.yaml"):
        file.unlink()
    for recipe in RECIPES:
        (FOLDER / f"{recipe.name}.yaml").write_text(plan_of(recipe), encoding="utf-8")


if __name__ == "__main__":
    write()
