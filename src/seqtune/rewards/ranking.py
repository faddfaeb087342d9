"""Ranked lists: a completion names one item a line."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Literal

from seqtune.errors import SeqtuneError
from seqtune.rewards.exact import normalised

if TYPE_CHECKING:
    from collections.abc import Iterable

Output = Literal["ndcg", "log_decay", "exp_inf"]
_NUMBERING = re.compile(r"^\s*(?:[-*•]|\(?\d+[.):])\s+")


def items(completion: str) -> list[str]:
    """The list a completion holds: its lines up to trailing empty ones, without numbering or bullets, normalised."""
    return [normalised(_NUMBERING.sub("", line)) for line in completion.rstrip().split("\n")]


def hits(listed: list[str], relevant: set[str], seen: set[str], k: int) -> list[int]:
    """rel_j of the first `k` ranks, always `k` numbers: 1 for a relevant item that was not seen or named before."""
    found, named = [], set(seen)
    for item in listed[:k]:
        found.append(int(item in relevant and item not in named))
        named.add(item)
    return found + [0] * (k - len(found))


def discount(rank: int) -> float:
    """1 / log2(rank + 2), rank from 0."""
    return 1 / math.log2(rank + 2)


def log_decay(rel: list[int]) -> list[float]:
    """r_k = Σ_{j≥k} rel_j · disc_j: the discounted gain not yet earned before rank k (https://arxiv.org/abs/2510.20150)."""
    found, total = [], 0.0
    for rank in reversed(range(len(rel))):
        total += rel[rank] * discount(rank)
        found.append(total)
    return found[::-1]


def list_ndcg(
    prompts: list[str],
    completions: list[str],
    columns: dict[str, list[Any]],
    *,
    k: int,
    output: Output,
    relevant: str,
) -> list[float | list[float] | None]:
    """How good the first `k` lines of a completion are as a ranked list.

    Args:
        prompts: Not read.
        completions: One item a line.
        columns: The relevant items, and `seen` if the data has it: items that count no more.
        k: Ranks that count.
        output: `ndcg`: Σ rel_j disc_j over its largest value, one number in [0, 1]; `log_decay` and `exp_inf`: a number
            a rank, `k` of them: the gain from this rank on, or whether this rank is a hit.
        relevant: Name of the column with the relevant items: a list, or a text with one a line.

    Returns:
        A number or `k` numbers a row; None for a row with no relevant item.

    Raises:
        SeqtuneError: The data has no such column.
    """
    if relevant not in columns:
        raise SeqtuneError(
            f"reward 'list_ndcg' reads the relevant items from the column '{relevant}', which the data does not have",
            where="reward.relevant",
            hint=f"reward.relevant=COLUMN; columns at hand: {', '.join(sorted(columns)) or 'none'}",
        )
    found: list[float | list[float] | None] = []
    old = columns.get("seen") or [None] * len(completions)
    for completion, wanted, known in zip(completions, columns[relevant], old, strict=True):
        seen = _set(known)
        good = _set(wanted) - seen
        if not good:
            found.append(None)
            continue
        rel = hits(items(completion), good, seen, k)
        if output == "exp_inf":
            found.append([float(hit) for hit in rel])
        elif output == "log_decay":
            found.append(log_decay(rel))
        else:
            best = sum(discount(rank) for rank in range(min(k, len(good))))
            found.append(log_decay(rel)[0] / best)
    return found


def _set(value: str | Iterable[str] | None) -> set[str]:
    listed = value.split("\n") if isinstance(value, str) else value or []
    return {normalised(str(item)) for item in listed} - {""}
