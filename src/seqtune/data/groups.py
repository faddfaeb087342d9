"""Groups of scored completions as what other objectives and evaluation take: pairs, and the best of each."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import datasets

from seqtune.data.rows import WHERE

if TYPE_CHECKING:
    from collections.abc import Sequence


def best(groups: datasets.Dataset) -> datasets.Dataset:
    """Columns `prompt` and `completion`, and `rows.WHERE` if it is there: the first of the best of each group."""
    made = [
        {"prompt": row["prompt"], "completion": row["completions"][row["scores"].index(max(row["scores"]))]}
        for row in groups
    ]
    return _like(groups, made, range(len(groups)))


def pairs(groups: datasets.Dataset, how: Literal["best_worst", "all"]) -> tuple[datasets.Dataset, int]:
    """Groups as preference pairs.

    Args:
        groups: Columns `prompt`, `completions` and `scores`.
        how: `best_worst`: the first of the best and the first of the worst of each group; `all`: every two
            completions with different scores.

    Returns:
        Columns `prompt`, `chosen` and `rejected`, and `rows.WHERE` if it is there; and how many groups gave no pair,
        because all their scores, or all their texts, are equal.
    """
    made: list[dict[str, Any]] = []
    sources: list[int] = []
    silent = 0
    for number, row in enumerate(groups):
        texts = row["completions"]
        found = [(texts[i], texts[j]) for i, j in _ordered(row["scores"], how) if texts[i] != texts[j]]
        made += [{"prompt": row["prompt"], "chosen": one, "rejected": other} for one, other in found]
        sources += [number] * len(found)
        silent += not found
    return _like(groups, made, sources), silent


def _ordered(scores: Sequence[float], how: str) -> list[tuple[int, int]]:
    """Numbers of completions, the better first."""
    if how == "best_worst":
        chosen, rejected = scores.index(max(scores)), scores.index(min(scores))
        return [(chosen, rejected)] if scores[chosen] > scores[rejected] else []
    numbers = range(len(scores))
    return [(i, j) for i, j in product(numbers, numbers) if scores[i] > scores[j]]


def _like(groups: datasets.Dataset, made: list[dict[str, Any]], sources: Sequence[int]) -> datasets.Dataset:
    if WHERE in groups.column_names:
        places = groups[WHERE]
        made = [{**row, WHERE: places[source]} for row, source in zip(made, sources, strict=True)]
    return datasets.Dataset.from_list(made)
