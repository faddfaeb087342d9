"""Histogram packing, shortest and longest pack first (arXiv:2107.02027), with a limit on documents in a row."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

from seqtune.packing.bins import Bins, Placement, checked, histogram, longest_first

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class _Open:
    """Open rows by space; the ones left last are taken first, as in the published programs."""

    def __init__(self, most: int) -> None:
        self.sizes: list[int] = []
        """The distinct spaces, ascending."""
        self._most = most
        self._ranges: dict[int, list[tuple[int, int, int]]] = {}

    def leave(self, space: int, first: int, count: int, held: int) -> None:
        """Leave `count` rows from `first` on with `space` tokens left; a row with no space or `most` documents is
        closed."""
        if space and count and held < self._most:
            if space not in self._ranges:
                insort(self.sizes, space)
                self._ranges[space] = []
            self._ranges[space].append((first, count, held))

    def take(self, space: int) -> tuple[int, int, int]:
        taken = self._ranges[space].pop()
        if not self._ranges[space]:
            del self._ranges[space], self.sizes[bisect_left(self.sizes, space)]
        return taken


def spfhp(lengths: NDArray[np.int64], capacity: int, seed: int, *, max_documents: int | None = None) -> Bins:
    """Shortest-pack-first: longest documents first, each into the row with the most space.

    Where no row has space for a length, every document of that length that is left opens a row of its own.

    Args:
        lengths: Tokens of each document. [documents]
        capacity: Tokens a row holds at most.
        seed: Of the order of rows.
        max_documents: Documents a row holds at most.

    Raises:
        ValueError: A length is below 1 or above `capacity`.
    """
    lengths = checked(lengths, capacity)
    placement = Placement(len(lengths))
    rows = _Open(max_documents or len(lengths) + 1)
    for length, number in histogram(lengths):
        left = number
        while left:
            if rows.sizes and rows.sizes[-1] >= length:
                space = rows.sizes[-1]
                first, count, held = rows.take(space)
                used = min(count, left)
                rows.leave(space, first + used, count - used, held)
            else:
                space, held, used = capacity, 0, left
                first = placement.open(used)
            placement.put(first, used, 1, held)
            rows.leave(space - length, first, used, held + 1)
            left -= used
    return placement.bins(longest_first(lengths, capacity), seed)


def lpfhp(lengths: NDArray[np.int64], capacity: int, seed: int, *, max_documents: int | None = None) -> Bins:
    """Longest-pack-first: longest documents first, each into the row with the least space that holds it.

    Without `max_documents` it opens as many rows as `best_fit`. Arguments and errors as `spfhp`.
    """
    lengths = checked(lengths, capacity)
    placement = Placement(len(lengths))
    most = max_documents or len(lengths) + 1
    rows = _Open(most)
    for length, number in histogram(lengths):
        left = number
        while left:
            fitting = bisect_left(rows.sizes, length)
            if fitting < len(rows.sizes):
                space = rows.sizes[fitting]
                first, count, held = rows.take(space)
            else:
                space, held = capacity, 0
                count = -(-left // min(capacity // length, most))
                first = placement.open(count)
            each = min(space // length, most - held, left)
            used = min(count, left // each)
            placement.put(first, used, each, held)
            left -= used * each
            if held == 0 and used < count:  # the row that was opened for what is left over
                count = used + 1
                placement.put(first + used, 1, left, held)
                rows.leave(space - left * length, first + used, 1, left)
                left = 0
            else:
                rows.leave(space, first + used, count - used, held)
            rows.leave(space - each * length, first, used, held + each)
    return placement.bins(longest_first(lengths, capacity), seed)
