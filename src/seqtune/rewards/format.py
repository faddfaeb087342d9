"""A regular expression the whole completion must match."""

from __future__ import annotations

import re
from typing import Any


def matches(
    prompts: list[str], completions: list[str], columns: dict[str, list[Any]], *, pattern: str
) -> list[float | None]:
    """1.0 if the whole completion matches `pattern` (dot matches newlines), else 0.0."""
    compiled = re.compile(pattern, re.DOTALL)
    return [float(compiled.fullmatch(completion) is not None) for completion in completions]
