"""Best-fit-decreasing on integers, and one document a row."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Bins:
    """Which documents share which row.

    Args:
        indices: Documents, row after row. int64 [documents]
        offsets: Row `r` holds `indices[offsets[r] : offsets[r + 1]]`. int64 [rows + 1]
    """

    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int64]:
        """The documents of one row."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.indices[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return (self[row] for row in range(len(self)))


def best_fit(lengths: NDArray[np.int64], capacity: int, seed: int) -> Bins:
    """Place documents, longest first, into the fullest row that still holds them; open a row where none does.

    Equal lengths keep their order and of equally full rows the first opened is taken, so the same lengths give the
    same rows. The rows then come in an order drawn from
    `seed`: longest-first rows would train on long documents first.

    Documents of one length are placed together: a row just used stays the fullest that fits while it fits, so a row
    with space `r` takes `r // length` of them at once. The cost is that of sorting plus one step for each change of
    a row, independent of how many equal rows there are. "Fewer Truncations Improve Language Modeling"
    (arXiv:2404.10830), in counting form.

    Args:
        lengths: Tokens of each document. [documents]
        capacity: Tokens a row holds at most.
        seed: Of the order of rows.

    Raises:
        ValueError: A length is below 1 or above `capacity`.
    """
    lengths = _checked(lengths, capacity)
    order = np.argsort(-lengths, kind="stable")
    row_of = np.empty(len(lengths), dtype=np.int64)  # of the documents in `order`
    spaces: list[int] = []  # the distinct spaces that open rows have left, ascending
    ranges: dict[int, list[tuple[int, int]]] = {}  # space -> heap of ranges (first row, count)

    def leave(space: int, first: int, count: int) -> None:
        if space and count:
            if space not in ranges:
                insort(spaces, space)
                ranges[space] = []
            heappush(ranges[space], (first, count))

    def take(space: int) -> tuple[int, int]:
        first, count = heappop(ranges[space])
        if not ranges[space]:
            del ranges[space], spaces[bisect_left(spaces, space)]
        return first, count

    rows = at = 0
    values, counts = np.unique(lengths, return_counts=True)
    for length, left in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            fitting = bisect_left(spaces, length)
            if fitting < len(spaces):
                space = spaces[fitting]
                first, count = take(space)
            else:
                space = capacity
                first, count = rows, -(-left // (capacity // length))
                rows += count
            each = space // length
            full = min(count, left // each)
            row_of[at : at + full * each] = np.repeat(np.arange(first, first + full), each)
            at, left = at + full * each, left - full * each
            part = min(left, each) if full < count else 0
            row_of[at : at + part] = first + full
            at, left = at + part, left - part
            untouched = first + full + (part > 0)
            leave(space, untouched, first + count - untouched)
            if part:
                leave(space - part * length, first + full, 1)
            leave(space - each * length, first, full)
    grouped = order[np.argsort(row_of, kind="stable")]
    return _shuffled(Bins(grouped, _offsets(np.bincount(row_of, minlength=rows))), seed)


def one_each(lengths: NDArray[np.int64], capacity: int, seed: int) -> Bins:
    """One document a row, the rows in an order drawn from `seed`. Arguments and errors as `best_fit`."""
    count = len(_checked(lengths, capacity))
    return _shuffled(Bins(np.arange(count), np.arange(count + 1)), seed)


def _checked(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and (lengths.min() < 1 or lengths.max() > capacity):
        raise ValueError(f"lengths are 1 to {capacity}, not {lengths.min()} to {lengths.max()}")
    return lengths


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])


def _shuffled(bins: Bins, seed: int) -> Bins:
    # PCG64 by name: numpy may choose another default generator, which would change every packed data set.
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(bins))
    sizes = np.diff(bins.offsets)[order]
    offsets = _offsets(sizes)
    source = np.arange(len(bins.indices)) + np.repeat(bins.offsets[:-1][order] - offsets[:-1], sizes)
    return Bins(bins.indices[source], offsets)
