"""Which recipes and groups are installed, found by listing files: no Hydra, so that completion is quick."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.resources import files
from typing import TYPE_CHECKING

from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

SHIPPED = "seqtune_recipes"


@dataclass(frozen=True)
class Listed:
    """A recipe or an option of a group.

    Args:
        name: What a command line says.
        origin: The distribution that ships it.
        file: Its YAML file.
    """

    name: str
    origin: str
    file: Traversable

    @property
    def summary(self) -> str:
        """The first comment of the file, without `Purpose:`."""
        first = self.file.read_text(encoding="utf-8").lstrip().partition("\n")[0]
        return first.lstrip("# ").removeprefix("Purpose:").strip() if first.startswith("#") else ""


@cache
def packages() -> dict[str, str]:
    """Importable packages that hold recipes, with the distribution of each: ours, then entry points `seqtune.recipes`.

    Raises:
        SeqtuneError: A registered package cannot be imported.
    """
    found = {SHIPPED: "seqtune"}
    for point in entry_points(group="seqtune.recipes"):
        origin = point.dist.name if point.dist else "an unknown distribution"
        try:
            import_module(point.value)
        except ImportError as error:
            raise SeqtuneError(
                f"the recipes of '{origin}' cannot be loaded: {error}",
                where=f"entry point seqtune.recipes: {point.name} = {point.value}",
                hint=f"reinstall or remove the distribution '{origin}'",
            ) from error
        found[point.value] = origin
    return found


@cache
def recipes() -> dict[str, Listed]:
    """Whole recipes by name.

    Raises:
        SeqtuneError: Two distributions ship one name.
    """
    return _options(None)


@cache
def groups() -> dict[str, dict[str, Listed]]:
    """Options by name, by group (`model`, `data`, …).

    Raises:
        SeqtuneError: Two distributions ship one name.
    """
    names = {
        entry.name
        for package in packages()
        for entry in files(package).iterdir()
        if entry.is_dir() and not entry.name.startswith(("_", "."))
    }
    return {name: options for name in sorted(names) if (options := _options(name))}


def _options(group: str | None) -> dict[str, Listed]:
    found: dict[str, Listed] = {}
    for package, origin in packages().items():
        folder = files(package) if group is None else files(package).joinpath(group)
        if not folder.is_dir():
            continue
        for entry in sorted(folder.iterdir(), key=lambda item: item.name):
            name = entry.name.removesuffix(".yaml")
            if name == entry.name:
                continue
            if name in found:
                what = "recipe" if group is None else f"{group} group"
                raise SeqtuneError(
                    f"the {what} '{name}' is shipped twice",
                    where=f"{found[name].origin} and {origin}",
                    hint="uninstall one of them or ask its author to rename it",
                )
            found[name] = Listed(name, origin, entry)
    return found
