"""Best-fit-decreasing on integers, and one document a row."""

from __future__ import annotations

from bisect import bisect_left, insort
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import numpy as np

from seqtune.packing.bins import Bins, Placement, checked, histogram, longest_first, shuffled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


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
    lengths = checked(lengths, capacity)
    placement = Placement(len(lengths))
    place_best(placement, histogram(lengths), capacity, Spaces())
    return placement.bins(longest_first(lengths, capacity), seed)


class Spaces:
    """Open rows by the space they have left."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        """The distinct spaces, ascending."""
        self._ranges: dict[int, list[tuple[int, int, int]]] = {}

    def leave(self, space: int, first: int, count: int, held: int) -> None:
        """Leave `count` rows from `first` on, each with `held` documents and `space` tokens left; none is no row."""
        if space and count:
            if space not in self._ranges:
                insort(self.sizes, space)
                self._ranges[space] = []
            heappush(self._ranges[space], (first, count, held))

    def take(self, space: int) -> tuple[int, int, int]:
        """First row, count and documents held of the earliest opened equal rows with this space."""
        taken = heappop(self._ranges[space])
        if not self._ranges[space]:
            del self._ranges[space], self.sizes[bisect_left(self.sizes, space)]
        return taken


def place_best(placement: Placement, documents: Iterable[tuple[int, int]], capacity: int, spaces: Spaces) -> None:
    """Best fit of `(length, count)` in the order given into the rows of `spaces` and into new ones."""
    for length, number in documents:
        left = number
        while left:
            fitting = bisect_left(spaces.sizes, length)
            if fitting < len(spaces.sizes):
                space = spaces.sizes[fitting]
                first, count, held = spaces.take(space)
            else:
                space, held = capacity, 0
                count = -(-left // (capacity // length))
                first = placement.open(count)
            each = space // length
            full = min(count, left // each)
            placement.put(first, full, each, held)
            left -= full * each
            part = min(left, each) if full < count else 0
            placement.put(first + full, int(part > 0), part, held)
            left -= part
            untouched = first + full + (part > 0)
            spaces.leave(space, untouched, first + count - untouched, held)
            if part:
                spaces.leave(space - part * length, first + full, 1, held + part)
            spaces.leave(space - each * length, first, full, held + each)


def one_each(lengths: NDArray[np.int64], capacity: int, seed: int) -> Bins:
    """One document a row, the rows in an order drawn from `seed`. Arguments and errors as `best_fit`."""
    count = len(checked(lengths, capacity))
    return shuffled(Bins(np.arange(count), np.arange(count + 1)), seed)
