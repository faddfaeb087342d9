"""Non-negative least squares histogram packing (arXiv:2107.02027): rows of a few documents each. Needs SciPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from seqtune.packing.bins import Bins, checked, grouped, longest_first

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST = 500_000
"""Fillings that are enumerated at most."""
_AT_ONCE = 100
"""Fillings that join the problem in one turn."""


def nnlshp(lengths: NDArray[np.int64], capacity: int, seed: int, *, max_documents: int = 3) -> Bins:
    """Fill rows exactly with at most a few documents each, in the mix of fillings that comes closest to the lengths.

    With `A[l, p]` documents of length `l` in filling `p`, over all multisets of at most `max_documents` lengths that
    sum to the capacity, and `h` the histogram: minimise `|w (A x - h)|` over `x >= 0`, with `w` = 0.09 for the lengths
    1 to 8 and 1 for others, and round `x`. Documents that leaves over get a row each, shared with one of the
    complementary length if there is one; places it foresees for documents that are not there stay empty. Better than
    `lpfhp` where few documents may share a row, worse where many may.

    The problem is solved over some fillings at a time: those with the largest gradient join until none is positive,
    which is the condition for the optimum over all of them.

    Args:
        lengths: Tokens of each document. [documents]
        capacity: Tokens a row holds at most.
        seed: Of the order of rows.
        max_documents: Documents a row holds at most.

    Raises:
        ValueError: A length is below 1 or above `capacity`.
    """
    lengths = checked(lengths, capacity)
    counts = np.bincount(lengths, minlength=capacity + 1)
    fillings = _fillings(capacity, max_documents)
    rows = np.rint(_least_squares(fillings, counts)).astype(np.int64)
    fillings, rows = fillings[rows > 0], rows[rows > 0]
    rest = counts.copy()
    np.subtract.at(rest, fillings, rows[:, None])
    over = np.flatnonzero(np.maximum(rest[1:], 0)) + 1
    beside = np.zeros((len(over), fillings.shape[1]), dtype=np.int64)
    beside[:, 0] = over
    if max_documents > 1:
        beside[:, 1] = capacity - over
    return _dealt(np.concatenate([fillings, beside]), np.concatenate([rows, rest[over]]), lengths, capacity, seed)


def number_of_fillings(capacity: int, documents: int) -> int:
    """Multisets of at most `documents` lengths that sum to `capacity`."""
    ways = [1] + [0] * capacity
    for size in range(1, documents + 1):  # partitions into parts of at most `documents` are as many
        for total in range(size, capacity + 1):
            ways[total] += ways[total - size]
    return ways[capacity]


def _fillings(capacity: int, documents: int) -> NDArray[np.int64]:
    """The fillings, each as lengths in descending order, 0 where it has fewer. int64 [fillings, documents]"""
    made = np.array([[capacity]])  # lengths so far in ascending order, and what is left, which is the longest
    for _ in range(documents - 1):
        smallest = made[:, -2] if made.shape[1] > 1 else np.zeros(1, dtype=np.int64)
        low = np.maximum(smallest, 1)
        choices = np.maximum(made[:, -1] // 2 - low + 1, 0)
        none = smallest == 0  # only zeros so far: another one, and the filling has fewer documents
        taken = np.repeat(np.arange(len(made)), choices)
        nth = np.arange(len(taken)) - np.repeat(np.cumsum(choices) - choices, choices)
        length = low[taken] + nth
        longer = np.column_stack([made[taken, :-1], length, made[taken, -1] - length])
        same = np.column_stack([made[none, :-1], np.zeros(int(none.sum()), dtype=np.int64), made[none, -1]])
        made = np.concatenate([same, longer])
    return made[:, ::-1]


def _least_squares(fillings: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """How many rows of each filling come closest to the counts. [fillings]"""
    from scipy.optimize import nnls

    weights = np.ones(len(counts))
    weights[:9] = 0.09
    weights[0] = 0.0  # the absent document of a filling with fewer
    wanted = weights * counts
    chosen = np.flatnonzero((fillings > 0).sum(axis=1) <= 2)
    while True:
        system = np.zeros((len(counts), len(chosen)))
        for lengths in fillings[chosen].T:
            np.add.at(system, (lengths, np.arange(len(chosen))), weights[lengths])
        found, _ = nnls(system, wanted, maxiter=20 * len(chosen))
        slope = (weights * (wanted - system @ found))[fillings].sum(axis=1)
        slope[chosen] = 0.0
        rising = np.argsort(-slope, kind="stable")[:_AT_ONCE]
        rising = rising[slope[rising] > 1e-9 * (1 + wanted.max())]
        if not len(rising):
            rows = np.zeros(len(fillings))
            rows[chosen] = found
            return rows
        chosen = np.concatenate([chosen[found > 0], rising])


def _dealt(
    fillings: NDArray[np.int64], rows: NDArray[np.int64], lengths: NDArray[np.int64], capacity: int, seed: int
) -> Bins:
    """Give the places of `rows` rows of each filling to the documents of their lengths, as long as there are any."""
    firsts = np.cumsum(rows) - rows
    places: list[list[NDArray[np.int64]]] = [[] for _ in range(capacity + 1)]
    for filling, first, count in zip(fillings.tolist(), firsts.tolist(), rows.tolist(), strict=True):
        for length in filling:
            places[length].append(np.arange(first, first + count))
    order = longest_first(lengths, capacity)
    counts = np.bincount(lengths, minlength=capacity + 1)
    taken = [np.concatenate(places[length])[: counts[length]] for length in range(capacity, 0, -1) if counts[length]]
    return grouped(order, np.concatenate(taken) if taken else order, seed)
