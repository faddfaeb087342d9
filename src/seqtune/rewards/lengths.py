"""Rewards of how long a completion is and how much it repeats."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Unit = Literal["tokens", "words", "characters"]
Columns = dict[str, list[Any]]
"""Columns of the data by name, a value a row each."""


def pieces(completions: list[str], unit: Unit, columns: Columns) -> list[Sequence[Any]]:
    """Each completion as what is counted of it: token ids (the column `completion_ids`), words or characters.

    Raises:
        SeqtuneError: Tokens are asked for, and whoever scores gave none.
    """
    if unit == "tokens":
        if "completion_ids" not in columns:
            raise SeqtuneError(
                "this reward counts tokens, and completions came without token ids",
                where="reward.unit",
                hint="reward.unit=words or reward.unit=characters counts what the text shows",
            )
        return columns["completion_ids"]
    return [text.split() if unit == "words" else text for text in completions]


def cosine_length(
    prompts: list[str],
    completions: list[str],
    columns: Columns,
    *,
    correct: Callable[..., list[float | None]],
    max_length: int,
    unit: Unit,
) -> list[float | None]:
    """a + (b - a)/2 · (1 + cos(π · min(len/L, 1))): correct (a, b) = (0.5, 1), wrong (-0.5, -1); TRL's cosine reward.

    Right and short is best, wrong and short is worst. `max_length` is L; `correct` scores above 0.5 what is right and
    gives None where it cannot tell, and so does this.
    """
    lengths = map(len, pieces(completions, unit, columns))
    found: list[float | None] = []
    for right, length in zip(correct(prompts, completions, **columns), lengths, strict=True):
        if right is None:
            found.append(None)
            continue
        low, high = (0.5, 1.0) if right > 0.5 else (-0.5, -1.0)
        found.append(low + 0.5 * (high - low) * (1 + math.cos(math.pi * min(length / max_length, 1))))
    return found


def soft_overlong(
    prompts: list[str], completions: list[str], columns: Columns, *, max_length: int, cache: int, unit: Unit
) -> list[float | None]:
    """DAPO's penalty (https://arxiv.org/abs/2503.14476): 0 up to L - c, then falling linearly to -1 at L, -1 beyond.

    `max_length` is L, `cache` is c.
    """
    lengths = map(len, pieces(completions, unit, columns))
    return [max(-1.0, min(0.0, (max_length - cache - length) / cache)) for length in lengths]


def repetition(
    prompts: list[str], completions: list[str], columns: Columns, *, n: int, penalty: float, unit: Unit
) -> list[float | None]:
    """(1 - distinct n-grams / n-grams) · penalty; 0 for fewer than n pieces."""
    found: list[float | None] = []
    for row in pieces(completions, unit, columns):
        grams = [tuple(row[start : start + n]) for start in range(len(row) - n + 1)]
        found.append((1 - len(set(grams)) / len(grams)) * penalty if grams else 0.0)
    return found


def length_budget(
    prompts: list[str],
    completions: list[str],
    columns: Columns,
    *,
    target: int,
    alpha: float,
    correct: Callable[..., list[float | None]] | None,
    unit: Unit,
) -> list[float | None]:
    """-α · |len - target| / target; with `correct`, its score · (1 - α · len / target), None where it gives None."""
    lengths = [len(row) for row in pieces(completions, unit, columns)]
    if correct is None:
        return [-alpha * abs(length - target) / target for length in lengths]
    return [
        None if right is None else right * (1 - alpha * length / target)
        for right, length in zip(correct(prompts, completions, **columns), lengths, strict=True)
    ]
