"""Rows dealt to processes and micro-steps so that none waits long for another. Integers and costs only.

`G` processes, `M` micro-steps, `R = G * M` rows of one optimiser step.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SWAPS = 64
"""Exchanges between the most and the least loaded process at most."""


class Cost(NamedTuple):
    """What a row costs: `linear * Σ l + quadratic * Σ l²` over its documents, in seconds or any other unit."""

    linear: float
    quadratic: float

    def of(self, lengths: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
        """The cost of every row.

        Args:
            lengths: Tokens of each document, row after row. [documents]
            offsets: Row `r` holds `lengths[offsets[r] : offsets[r + 1]]`. [R + 1]
        """
        each = self.linear * lengths + self.quadratic * np.square(lengths, dtype=np.float64)
        sums = np.concatenate([[0.0], np.cumsum(each)])
        return np.diff(sums[offsets])


def default_cost(hidden_size: int) -> Cost:
    """`6 h Σ l + Σ l²`, the ratio of dense to attention work in a transformer of hidden size `h`."""
    return Cost(6.0 * hidden_size, 1.0)


def calibrated(tokens: Sequence[float], squares: Sequence[float], seconds: Sequence[float]) -> Cost:
    """The cost that comes closest to measured times, no term negative: least squares.

    Args:
        tokens: `Σ l` of each measured row or micro-batch.
        squares: `Σ l²` of each.
        seconds: What each took.

    Raises:
        ValueError: There are fewer than two measurements, or they do not tell the terms apart.
    """
    from scipy.optimize import nnls

    measured = np.column_stack([tokens, squares]).astype(np.float64)
    scale = np.abs(measured).max(axis=0) if len(measured) else np.zeros(2)
    if not scale.all() or np.linalg.matrix_rank(measured / scale) < 2:
        raise ValueError("times of rows with different Σ l² / Σ l are needed")
    found, _ = nnls(measured / scale, np.asarray(seconds, dtype=np.float64))
    return Cost(float(found[0] / scale[0]), float(found[1] / scale[1]))


@dataclass(frozen=True)
class Balance:
    """Which row each process takes in each micro-step of an optimiser step.

    Args:
        slots: `slots[m, g]` is the row of process `g` in micro-step `m`. int64 [M, G]
        before: Share of all processes' time spent waiting for the slowest, with rows in the order given.
        after: The same with `slots`; never above `before`.
    """

    slots: NDArray[np.int64]
    before: float
    after: float


def balance(costs: NDArray[np.float64], processes: int, method: Literal["lpt", "karmarkar_karp"] = "lpt") -> Balance:
    """Deal the rows of one optimiser step to processes, as many to each, with as little waiting at its end.

    The process with the greatest sum of costs decides when a step ends. Within a process dear rows come first, so that
    processes that meet in every micro-step wait little, too. Where the order given is as good, it is kept.

    Args:
        costs: Of each row, at least 0. [R]
        processes: G, of which R is a multiple.
        method: `lpt`: the dearest row left goes to the process with the least so far that has room. `karmarkar_karp`:
            groups of G similar rows are merged, the two of greatest difference first, dear ones with cheap ones. Both
            end with exchanges between the most and the least loaded process.

    Raises:
        ValueError: R is no multiple of `processes`.
    """
    costs = np.asarray(costs, dtype=np.float64)
    if processes < 1 or len(costs) % processes:
        raise ValueError(f"{len(costs)} rows are not as many for each of {processes} processes")
    given = np.arange(len(costs)).reshape(-1, processes)
    before = straggler_share(costs, given)
    if not len(costs):
        return Balance(given, before, before)
    dealt = _swapped(costs, (_lpt if method == "lpt" else _karmarkar_karp)(costs, processes))
    slots = np.array([sorted(rows, key=lambda row: (-costs[row], row)) for rows in dealt], dtype=np.int64).T
    after = straggler_share(costs, slots)
    return Balance(slots, before, after) if after < before else Balance(given, before, before)


def straggler_share(costs: NDArray[np.float64], slots: NDArray[np.int64], *, every_micro_step: bool = False) -> float:
    """The share of all processes' time that goes by waiting for the slowest: 0 is ideal.

    Args:
        costs: Of each row. [R]
        slots: As of `Balance`. [M, G]
        every_micro_step: Whether processes wait for one another after each micro-step rather than at the end.
    """
    spent = costs[slots]
    slowest = spent.max(axis=1, initial=0.0).sum() if every_micro_step else spent.sum(axis=0).max(initial=0.0)
    # The mean of equal sums can exceed their maximum by a rounding error.
    return max(0.0, float(1 - spent.sum() / (slots.shape[1] * slowest))) if slowest else 0.0


def _lpt(costs: NDArray[np.float64], processes: int) -> list[list[int]]:
    most = len(costs) // processes
    dealt: list[list[int]] = [[] for _ in range(processes)]
    least = [(0.0, process) for process in range(processes)]
    for row in np.argsort(-costs, kind="stable").tolist():
        load, process = heappop(least)
        dealt[process].append(row)
        if len(dealt[process]) < most:
            heappush(least, (load + float(costs[row]), process))
    return dealt


def _karmarkar_karp(costs: NDArray[np.float64], processes: int) -> list[list[int]]:
    order = np.argsort(-costs, kind="stable").reshape(-1, processes).tolist()
    # (minus the spread, age, parts from the dearest on); the age orders equal spreads
    heap = [
        (float(costs[group[-1]] - costs[group[0]]), age, [(float(costs[row]), [row]) for row in group])
        for age, group in enumerate(order)
    ]
    heapify(heap)
    age = len(heap)
    while len(heap) > 1:
        _, _, one = heappop(heap)
        _, _, other = heappop(heap)
        merged = [(a + b, rows + more) for (a, rows), (b, more) in zip(one, reversed(other), strict=True)]
        merged.sort(key=lambda part: (-part[0], part[1]))
        heappush(heap, (merged[-1][0] - merged[0][0], age, merged))
        age += 1
    return [rows for _, rows in heap[0][2]]


def _swapped(costs: NDArray[np.float64], dealt: list[list[int]]) -> list[list[int]]:
    """Exchange one row of the most with one of the least loaded process as long as that lowers the greater load."""
    for _ in range(_SWAPS):
        loads = [float(costs[rows].sum()) for rows in dealt]
        high, low = int(np.argmax(loads)), int(np.argmin(loads))
        moved = costs[dealt[high]][:, None] - costs[dealt[low]][None, :]
        greater = np.maximum(loads[high] - moved, loads[low] + moved)
        i, j = np.unravel_index(np.argmin(greater), greater.shape)
        if not greater[i, j] < loads[high] * (1 - 1e-12):
            break
        dealt[high][i], dealt[low][j] = dealt[low][j], dealt[high][i]
    return dealt
