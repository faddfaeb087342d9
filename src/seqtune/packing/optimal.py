"""As few rows as a linear program finds, with a bound that proves how few there can be. Needs SciPy's HiGHS.

`U` distinct lengths; a pattern is a sorted tuple of their numbers, the lengths of the documents one row holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from seqtune.errors import SeqtuneError
from seqtune.packing.best_fit import Spaces, best_fit, place_best
from seqtune.packing.bins import Bins, Placement, checked, grouped, histogram, longest_first
from seqtune.packing.bounds import heaviest_row, l2, weighted

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NOTHING = 1e-9
"""A pattern worth less than this above a row does not improve a solution."""
_SCALE = 2**40
"""Prices are rounded to multiples of 1/this before they prove a bound."""


def optimal(lengths: NDArray[np.int64], capacity: int, seed: int) -> Bins:
    """Fill rows by the patterns of the cutting-stock linear program, what they leave over by best fit.

    Minimise `Σ x_p` over patterns `p` such that the documents of every length have places; a place may hold a shorter
    document. Patterns come by column generation: the program's prices value a document of each length, dynamic
    programming finds the most valuable rows through each length, and those worth more than a row join. At the end the
    prices are a certificate: rounded to integers they bound the rows of any packing from below (Farley, "A note on
    bounding a class of linear programming problems", 1990). Rows follow `floor(x_p)`; the few documents left over
    go into the space that is left, and into further rows. Where `best_fit` meets its bound already, that is the result.

    The program starts from the patterns of `best_fit`. Its cost grows with `U` and the capacity, hardly with the number
    of documents: about a second up to 512 tokens, more than a minute above 1,024.

    Args:
        lengths: Tokens of each document. [documents]
        capacity: Tokens a row holds at most.
        seed: Of the order of rows.

    Returns:
        Bins with the proven `bound`; never more rows than `best_fit`.

    Raises:
        ValueError: A length is below 1 or above `capacity`.
        SeqtuneError: HiGHS gave up.
    """
    lengths = checked(lengths, capacity)
    greedy = best_fit(lengths, capacity, seed)
    bound = l2(lengths, capacity)
    if len(greedy) > bound:
        counts = np.bincount(lengths, minlength=capacity + 1)
        solution = _solve(np.flatnonzero(counts), counts, capacity, _patterns(greedy, lengths))
        bound = max(bound, solution.bound)
        found = _rounded(solution, lengths, capacity, seed)
        greedy = found if len(found) < len(greedy) else greedy
    return Bins(greedy.indices, greedy.offsets, bound=bound)


class _Solution(NamedTuple):
    patterns: list[tuple[int, ...]]
    rows: NDArray[np.float64]
    bound: int


def _patterns(bins: Bins, lengths: NDArray[np.int64]) -> list[tuple[int, ...]]:
    """The patterns of a packing, each once."""
    place = np.cumsum(np.bincount(lengths) > 0) - 1  # of a length among the distinct ones
    # A row's sum of random marks tells patterns apart; where two had the same, one would be missing, no harm.
    marks = np.random.Generator(np.random.PCG64(0)).integers(0, 2**63, len(place))
    sums = np.add.reduceat(marks[lengths[bins.indices]], bins.offsets[:-1])
    _, rows = np.unique(sums, return_index=True)
    return [tuple(sorted(place[lengths[bins[row]]].tolist())) for row in rows.tolist()]


def _solve(
    sizes: NDArray[np.int64], counts: NDArray[np.int64], capacity: int, patterns: list[tuple[int, ...]]
) -> _Solution:
    """The program over the given patterns and those that it turns out to need."""
    from scipy.optimize import linprog
    from scipy.sparse import csc_array, hstack

    number = len(sizes)
    wanted = counts[sizes].astype(np.float64)
    known = dict.fromkeys(patterns)
    # A place for one length may be used for the next shorter one, at no cost: prices then grow with length, which
    # spares most of the turns.
    down = np.arange(number - 1)
    ones = np.ones(number - 1)
    exchange = csc_array(
        (np.concatenate([-ones, ones]), (np.concatenate([down + 1, down]), np.concatenate([down, down]))),
        shape=(number, number - 1),
    )
    best = 0.0
    while True:
        patterns = list(known)
        places = np.array([place for pattern in patterns for place in pattern])
        of = np.repeat(np.arange(len(patterns)), [len(pattern) for pattern in patterns])
        holds = csc_array((np.ones(len(places)), (places, of)), shape=(number, len(patterns)))
        cost = np.concatenate([np.ones(len(patterns)), np.zeros(number - 1)])
        found = linprog(cost, A_ub=-hstack([holds, exchange]), b_ub=-wanted, bounds=(0, None), method="highs-ds")
        if not found.success:
            raise SeqtuneError(f"the linear program has no solution: {found.message}", "packing", "packing=best_fit")
        prices = np.zeros(capacity + 1)
        prices[sizes] = np.maximum(-found.ineqlin.marginals, 0.0)
        new, worth = _worth_a_row(sizes, prices, capacity)
        best = max(best, float(wanted @ prices[sizes]) / max(1.0, worth))
        fresh = [pattern for pattern in new if pattern not in known]
        # Rows are whole: once both round up to the same number, no pattern can save one.
        if not fresh or np.ceil(found.fun - 1e-6) <= np.ceil(best - 1e-6):
            weights = np.floor(prices * _SCALE).astype(np.int64)
            return _Solution(patterns, found.x[: len(patterns)], weighted(counts, weights, capacity))
        known |= dict.fromkeys(fresh)


def _worth_a_row(
    sizes: NDArray[np.int64], prices: NDArray[np.float64], capacity: int
) -> tuple[list[tuple[int, ...]], float]:
    """For each length the best pattern that holds it, if it is worth more than a row; and the worth of the best."""
    best = heaviest_row(sizes, prices, capacity)
    through = prices[sizes] + best[capacity - sizes]
    found: dict[tuple[int, ...], None] = {}
    for place in np.flatnonzero(through > 1 + _NOTHING).tolist():
        pattern, room = [place], capacity - int(sizes[place])
        while best[room] > 0:
            fitting = sizes[: np.searchsorted(sizes, room, side="right")]
            pattern.append(int(np.argmax(prices[fitting] + best[room - fitting])))
            room -= int(sizes[pattern[-1]])
        found[tuple(sorted(pattern))] = None
    return list(found), float(best[-1])


def _rounded(solution: _Solution, lengths: NDArray[np.int64], capacity: int, seed: int) -> Bins:
    """Whole rows of each pattern, their places taken by documents of the length or the next shorter ones."""
    whole = np.floor(solution.rows + 1e-6).astype(np.int64)
    sizes = histogram(lengths)
    firsts = np.cumsum(whole) - whole
    rows_with: list[list[NDArray[np.int64]]] = [[] for _ in sizes]
    for pattern, first, count in zip(solution.patterns, firsts.tolist(), whole.tolist(), strict=True):
        for place in pattern if count else ():
            rows_with[place].append(np.arange(first, first + count))
    row_of = np.full(len(lengths), -1, dtype=np.int64)  # of the documents, longest first
    free = np.empty(0, dtype=np.int64)  # rows with a place for a longer document than is left
    at = 0
    for place, (_, count) in zip(range(len(sizes) - 1, -1, -1), sizes, strict=True):
        free = np.concatenate([free, *rows_with[place]])
        used = min(count, len(free))
        row_of[at : at + used] = free[len(free) - used :]
        free = free[: len(free) - used]
        at += count
    order = longest_first(lengths, capacity)
    left = np.flatnonzero(row_of < 0)
    held = np.zeros(int(whole.sum()), dtype=np.int64)
    np.add.at(held, row_of[row_of >= 0], lengths[order[row_of >= 0]])
    row_of[left] = _into_space(lengths[order[left]], capacity - held, capacity)
    return grouped(order, row_of, seed)


def _into_space(lengths: NDArray[np.int64], space: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """The row of each document, longest first: the fullest of those with the given space, or a new one."""
    by_space = np.argsort(space, kind="stable")
    placement, spaces = Placement(len(lengths)), Spaces()
    for left, count in histogram(space)[::-1]:
        spaces.leave(left, placement.open(count), count, 0)
    place_best(placement, histogram(lengths), capacity, spaces)
    names = np.concatenate([by_space, np.arange(len(space), placement.rows)])
    rows: NDArray[np.int64] = names[placement.row_of]
    return rows
