"""A regular expression the whole completion must match."""

from __future__ import annotations

from typing import Any

import regex


def matches(
    prompts: list[str], completions: list[str], columns: dict[str, list[Any]], *, pattern: str, timeout: float
) -> list[float | None]:
    """1.0 if the whole completion matches `pattern` (dot matches newlines), else 0.0, also after `timeout` seconds.

    A pattern with a repetition in a repetition, `(a+)+b`, takes longer than anybody waits on a text made for it, and
    Python's own `re` cannot be stopped.
    """
    compiled = regex.compile(pattern, regex.DOTALL)
    return [_matches(compiled, completion, timeout) for completion in completions]


def _matches(compiled: regex.Pattern[str], completion: str, timeout: float) -> float:
    try:
        return float(compiled.fullmatch(completion, timeout=timeout) is not None)
    except TimeoutError:
        return 0.0
