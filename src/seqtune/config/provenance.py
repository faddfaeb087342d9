"""Where every value of a composed recipe came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Origin:
    """Who set a value.

    Args:
        kind: A group file (`objective/gspo.yaml`), the recipe's own file, a word of one of its stages, the command
            line, or the default of the field.
        file: The file, for the first three.
        line: Line in it, from 1.
        word: The override as written, for stage words and the command line.
    """

    kind: Literal["group", "recipe", "stage", "command line", "default"]
    file: str | None = None
    line: int | None = None
    word: str | None = None

    def __str__(self) -> str:
        if self.kind in ("command line", "default"):
            return self.kind
        return f"{self.file}:{self.line}" if self.line else str(self.file)


@dataclass(frozen=True)
class ComposedStage:
    """One stage as plain values.

    Args:
        name: Name of the stage; empty when the recipe has no `stages`.
        values: Nested dictionaries, lists and scalars; `"???"` marks a value the recipe leaves to the user.
        origins: Who set each leaf, by dotted path.
        groups: The option chosen for each group (`{"objective": "gspo"}`).
    """

    name: str
    values: dict[str, Any]
    origins: dict[str, Origin] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)

    def origin(self, path: str) -> Origin:
        """Who set `path`, or whoever set the nearest thing around or inside it; the field's default otherwise."""
        if path in self.origins:
            return self.origins[path]
        inside = [origin for known, origin in self.origins.items() if known.startswith(f"{path}.")]
        if inside:
            return inside[-1]
        parent = path.rpartition(".")[0]
        return self.origins.get(parent, Origin("default")) if parent else Origin("default")


@dataclass(frozen=True)
class Composed:
    """A recipe after composition, before it is read into a plan."""

    recipe: str
    stages: tuple[ComposedStage, ...]
    words: tuple[str, ...] = ()
