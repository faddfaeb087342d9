"""Rows below which no packing goes, and what a packing is worth beside them. `C` capacity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from seqtune.packing.bins import Bins


def l1(lengths: NDArray[np.int64], capacity: int) -> int:
    """Rows that the tokens fill: `ceil(Σ l / C)`. Holds for packings that cut documents, too.

    Args:
        lengths: Tokens of each document. [documents]
        capacity: Tokens a row holds at most.
    """
    return -(-int(np.sum(lengths, dtype=np.int64)) // capacity)


def l2(lengths: NDArray[np.int64], capacity: int) -> int:
    """Rows that any packing needs that cuts no document: at least `l1`, and more where documents do not combine.

    For a threshold `t` from 0 to C/2, documents above C - t stand alone, those above C/2 take a row each, and those
    from `t` to C/2 need what the second kind leaves them, or more rows; the largest count over all `t` (Martello and
    Toth, "Lower bounds and reduction procedures for the bin packing problem", 1990). Of a document longer than a row
    as many full rows are counted as it fills, and its remainder as a document.

    Args:
        lengths: Tokens of each document. [documents]
        capacity: Tokens a row holds at most.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    full = int((lengths // capacity).sum())
    counts = np.bincount(lengths % capacity, minlength=capacity + 1)
    counts[0] = 0
    number = np.cumsum(counts)  # of documents up to a length
    tokens = np.cumsum(counts * np.arange(capacity + 1))
    half = capacity // 2
    t = np.arange(half + 1)
    paired = number[capacity - t] - number[half]  # n2: C/2 < l <= C - t
    alone = number[capacity] - number[capacity - t]  # n1: l > C - t
    small = tokens[half] - np.concatenate([[0], tokens[:half]])  # s3: t <= l <= C/2
    room = paired * capacity - (tokens[capacity - t] - tokens[half])
    return full + int((alone + paired + np.maximum(0, -((room - small) // capacity))).max())


def weighted(counts: NDArray[np.int64], weights: NDArray[np.int64], capacity: int) -> int:
    """Rows that documents of given weights need, where no row can hold more than a certain weight.

    That weight is the worth of the best row, found exactly in integers, so any non-negative weights give a bound that
    holds: `ceil(Σ weight / worth of the best row)`.

    Args:
        counts: Documents of each length from 0 on. [C + 1]
        weights: Of a document of each length from 0 on. int64 [C + 1]
        capacity: Tokens a row holds at most.
    """
    total = sum(int(n) * int(w) for n, w in zip(counts, weights, strict=True) if n)
    heaviest = int(heaviest_row(np.flatnonzero(counts), weights, capacity)[-1])
    return -(-total // heaviest) if heaviest else 0


def heaviest_row(lengths: NDArray[np.int64], weights: NDArray[Any], capacity: int) -> NDArray[Any]:
    """The most weight that each number of tokens can hold, any length as often as it likes. [C + 1]

    Args:
        lengths: Distinct lengths there are, ascending, at least 1.
        weights: Of a document of each length from 0 on, at least 0. [C + 1]
        capacity: Tokens a row holds at most.
    """
    of = weights[lengths]
    best = np.zeros(capacity + 1, dtype=weights.dtype)
    fitting = np.searchsorted(lengths, np.arange(capacity + 1), side="right").tolist()
    for room in range(1, capacity + 1):
        if some := fitting[room]:
            best[room] = (of[:some] + best[room - lengths[:some]]).max()
    return best


def report(bins: Bins, lengths: NDArray[np.int64], capacity: int) -> dict[str, Any]:
    """What a packing did to its documents, beside what no packing could have done.

    Args:
        bins: What a packer made of `lengths`.
        lengths: Tokens of each document. [documents]
        capacity: Tokens a row holds at most.

    Returns:
        `bounds`: rows `l1` and `l2`, and `proven` where the packer proved a bound of its own. `split` where documents
        were cut: how many, and the `pieces` they gave. `cropped` where tokens were lost: the `documents` and `tokens`.
    """
    bounds = {"l1": l1(lengths, capacity), "l2": l2(lengths, capacity)}
    if bins.bound is not None:
        bounds["proven"] = bins.bound
    found: dict[str, Any] = {"bounds": bounds}
    if bins.sizes is not None:
        pieces = np.bincount(bins.indices, minlength=len(lengths))
        if (split := pieces > 1).any():
            found["split"] = {"documents": int(split.sum()), "pieces": int(pieces[split].sum())}
        kept = np.zeros(len(lengths), dtype=np.int64)
        np.add.at(kept, bins.indices, bins.sizes)
        if (lost := np.asarray(lengths) - kept).any():
            found["cropped"] = {"documents": int((lost > 0).sum()), "tokens": int(lost.sum())}
    return found
