"""What recipe packages hold, read from their files alone: fast enough for shell completion."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A package of recipes: the shipped one, or one behind the entry point `seqtune.recipes`."""

    module: str
    origin: str
    folder: Path


def sources() -> list[Source]:
    """Every package of recipes, the shipped one first."""
    named = [("seqtune_recipes", "seqtune")]
    named += [(p.value, p.dist.name if p.dist else p.value) for p in entry_points(group="seqtune.recipes")]
    found = []
    for module, origin in named:
        spec = find_spec(module)
        if spec is not None and spec.submodule_search_locations:
            found.append(Source(module, origin, Path(spec.submodule_search_locations[0])))
    return found


def recipes() -> dict[str, tuple[Path, str]]:
    """Whole recipes: name to file and the distribution that ships it."""
    return {file.stem: (file, source.origin) for source in reversed(sources()) for file in source.folder.glob("*.yaml")}


def options(group: str) -> list[str]:
    """The choices of a group (`objective`, `data`, …)."""
    return sorted({file.stem for source in sources() for file in (source.folder / group).glob("*.yaml")})


def groups() -> list[str]:
    """The groups recipes choose from."""
    return sorted({f.name for source in sources() for f in source.folder.iterdir() if any(f.glob("*.yaml"))})


def purpose(file: Path) -> str:
    """The first comment line of a recipe or group file."""
    first = file.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").removeprefix("Purpose: ")
