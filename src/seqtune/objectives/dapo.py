"""DAPO's overlong penalty and dynamic sampling (https://arxiv.org/abs/2503.14476). Imports no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def overlong(length: int, *, limit: int, cache: int) -> float:
    """Soft overlong penalty of DAPO (https://arxiv.org/abs/2503.14476), falling to -1 over the last `cache` tokens.

    0 if n <= L - c;  (L - c - n) / c if n <= L;  -1 beyond
    """
    if cache == 0 or length <= limit - cache:
        return 0.0
    return max((limit - cache - length) / cache, -1.0)


def informative(scores: Sequence[Sequence[float]]) -> list[bool]:
    """Groups whose scores are not all equal: those that dynamic sampling keeps (DAPO).

    Args:
        scores: Of each group its completions' accuracy, before any shaping of the reward; NaN is no score.
    """
    kept = []
    for group in scores:
        known = [score for score in group if not math.isnan(score)]
        kept.append(bool(known) and max(known) - min(known) >= 1e-8)
    return kept


def fill(kept: Sequence[int], spare: Sequence[int], wanted: int) -> list[int]:
    """Numbers of `wanted` groups: those kept in their order, then as many without spread as are missing.

    A group without spread has A = 0, so shapes stay constant and nothing is learnt from it.

    Raises:
        ValueError: Both together are too few.
    """
    if len(kept) + len(spare) < wanted:
        raise ValueError(f"{len(kept)} informative groups and {len(spare)} others do not make {wanted}")
    return [*kept[:wanted], *spare[: max(wanted - len(kept), 0)]]
