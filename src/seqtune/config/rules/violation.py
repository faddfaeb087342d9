"""A combination that cannot run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """A combination that cannot run.

    Args:
        problem: What contradicts what.
        fields: Dotted paths of the fields involved, the one to change first.
        hint: The way out.
    """

    problem: str
    fields: tuple[str, ...]
    hint: str
