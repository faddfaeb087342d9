"""The shipped recipes, and the words their headers say to start them with."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import dropwhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FIELDS = ("Purpose", "Hardware and memory", "Launch", "Override", "Numbers")
"""What every header says, in this order."""


@dataclass(frozen=True)
class Recipe:
    """A whole recipe: its file and the fields of its header."""

    file: Path
    header: dict[str, str]

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def words(self) -> list[str]:
        """What the launch line gives besides the recipe; the model to evaluate becomes `model.name`."""
        command, *words = shlex.split(self.header["Launch"].removeprefix("seqtune "))
        words = [word for word in words if not word.startswith("recipe=")]
        return [w.replace("model=", "model.name=", 1) for w in words] if command == "eval" else words

    @property
    def body(self) -> str:
        """What stands below the header."""
        lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
        return "".join(dropwhile(lambda line: line.startswith("# "), lines)).removeprefix("#\n")

    @property
    def override(self) -> list[str]:
        """The words of the override line."""
        return shlex.split(self.header["Override"])


def shipped(folder: Path) -> list[Recipe]:
    """Every whole recipe in a folder, by name."""
    return [Recipe(file, read_header(file)) for file in sorted(folder.glob("*.yaml"))]


def read_header(file: Path) -> dict[str, str]:
    """The comment lines a recipe begins with, as `{field: text}`, up to an empty one.

    An indented line goes on with the one before.
    """
    found: dict[str, str] = {}
    field = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        name, colon, text = line.removeprefix("# ").partition(": ")
        if colon and not line.startswith("#  "):
            field, found[name] = name, text
        else:
            found[field] += " " + line.lstrip("# ")
    return found
