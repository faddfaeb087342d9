"""What objectives say about rollouts, as integers and floats: spans of a text, lengths, prefixes, kept groups.

Imports no torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTSIDE = -1
"""Segment of a token that belongs to none."""


def lines(pieces: Sequence[str]) -> list[int]:
    """Number of newlines before each token: a newline belongs to the line it closes.

    Args:
        pieces: Text of each token, in order.
    """
    found, number = [], 0
    for piece in pieces:
        found.append(number)
        number += piece.count("\n")
    return found


def plan_and_answer(pieces: Sequence[str], marker: str) -> list[int]:
    """0 for the plan, 1 for the answer, -1 for the marker between them; without the marker all is answer.

    A token that straddles an edge belongs to the span that holds its last character.

    Args:
        pieces: Text of each token, in order.
        marker: What ends the plan; its first occurrence counts.
    """
    text = "".join(pieces)
    start = text.find(marker)
    if start < 0:
        return [1] * len(pieces)
    end = start + len(marker)
    found, place = [], 0
    for piece in pieces:
        place += len(piece)
        last = place - 1
        found.append(0 if last < start else OUTSIDE if last < end else 1)
    return found


def overlong(length: int, *, limit: int, cache: int) -> float:
    """Soft overlong penalty of DAPO (https://arxiv.org/abs/2503.14476), falling to -1 over the last `cache` tokens.

    0 if n <= L - c;  (L - c - n) / c if n <= L;  -1 beyond
    """
    if cache == 0 or length <= limit - cache:
        return 0.0
    return max((limit - cache - length) / cache, -1.0)


def prefix_share(step: int, *, first: float, last: float, steps: int, schedule: str = "cosine") -> float:
    """Least share of a demonstration that is given, at a step: from `first` down to `last` after `steps`.

    Args:
        step: Optimiser step, from 0.
        first: Share at step 0.
        last: Share at `steps` and after.
        steps: Length of the descent.
        schedule: `constant` (`first` throughout), `linear` or `cosine`.
    """
    if schedule == "constant":
        return first
    done = min(step, steps) / max(steps, 1)
    left = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return last + left * (first - last)


def prefix_length(share: float, length: int, *, least: int = 1) -> int:
    """Tokens of a demonstration of `length` that are given: at least `least`, and at least one is left to generate.

    0 where the demonstration is shorter than two tokens: there is no prefix to give.
    """
    return 0 if length < 2 else min(max(int(share * length), least), length - 1)


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
