"""What was composed, and who set every value of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from seqtune.errors import Problem

Kind = Literal["default", "group", "file", "stage", "command line"]
"""Who can set a value, the weakest first: a spec's default, a group's file, the recipe, a stage's list, the user."""
RANK: dict[Kind, int] = {"default": 0, "group": 1, "file": 2, "stage": 3, "command line": 4}

MISSING = "???"
"""What a recipe writes for a value that has to be given."""


@dataclass(frozen=True)
class Origin:
    """Who set a value.

    Args:
        kind: Which of the five ways.
        file: Recipe file, as `package/path.yaml` or a local path; None for a default and the command line, which can
            also give the words of a stage.
        line: Line of `file`, from 1; None where it is not known.
    """

    kind: Kind
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        if self.file is None:
            return "command line" if self.kind == "stage" else str(self.kind)
        return self.file if self.line is None else f"{self.file}:{self.line}"


DEFAULT = Origin("default")
COMMAND_LINE = Origin("command line")


@dataclass(frozen=True)
class ComposedStage:
    """One stage as composed: plain values, not yet checked.

    Args:
        name: Of the stage; empty when the recipe has no stages, which names it after its objective.
        values: By axis, then field; `MISSING` where a value has to be given.
        origins: Who set the value at each dotted path.
        named: The `name` each axis' group file gave, before words changed it.
        unread: Axes left out of `values` because a problem with them is reported already.
    """

    name: str
    values: Mapping[str, Any]
    origins: Mapping[str, Origin] = field(default_factory=lambda: MappingProxyType({}))
    named: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    unread: frozenset[str] = frozenset()

    def origin(self, path: str) -> Origin:
        """Who set the value at `path`: the spec's default where nobody did."""
        return self.origins.get(path, DEFAULT)


@dataclass(frozen=True)
class Composed:
    """A recipe with every word applied.

    Args:
        recipe: Its name, or the path of its file.
        stages: In order.
        words: What the command line said, without `recipe=`.
        problems: What was found wrong while composing; `read` reports them with its own.
    """

    recipe: str
    stages: tuple[ComposedStage, ...]
    words: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value by dotted path; lists and empty sections are values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found.update(leaves(value, f"{path}."))
        else:
            found[path] = value
    return found


def provenance(composed: Composed, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """What `provenance.json` holds: the recipe, the words, and by stage the origin of every value set.

    Args:
        composed: The composition a plan was read from.
        names: The plan's stage names, where they differ from the composed ones.
    """
    labels = names or tuple(stage.name for stage in composed.stages)
    return {
        # A recipe's file is found again from any directory, a recipe's name is looked up.
        "recipe": str(Path(composed.recipe).absolute()) if composed.recipe.endswith(".yaml") else composed.recipe,
        "words": list(composed.words),
        "origins": {
            label: {path: str(stage.origin(path)) for path in sorted(leaves(stage.values))}
            for label, stage in zip(labels, composed.stages, strict=True)
        },
    }
