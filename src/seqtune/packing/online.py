"""Packing of what arrives one by one, without seeing what follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from seqtune.packing.bins import Bins

if TYPE_CHECKING:
    from numpy.typing import NDArray


class OpenRows:
    """Best fit into a bounded number of open rows.

    An item goes into the fullest open row that still holds it. Where none does, a row is opened, and when as many are
    open as may be, the fullest of them is closed first. A full row is closed at once, so a row is never more than that
    many rows away from where next-fit would have put it. Of equal rows the oldest is taken.

    Args:
        capacity: Tokens a row holds at most.
        count: Rows open at a time.
    """

    def __init__(self, capacity: int, count: int) -> None:
        self.capacity, self.count = capacity, count
        self._open: list[tuple[int, list[int]]] = []
        """Space left and items of each open row, oldest first."""

    def push(self, item: int, length: int) -> list[list[int]]:
        """Place an item; returns the rows this closed.

        Raises:
            ValueError: `length` is below 1 or above the capacity.
        """
        if not 1 <= length <= self.capacity:
            raise ValueError(f"a length is 1 to {self.capacity}, not {length}")
        closed: list[list[int]] = []
        spaces = [space for space, _ in self._open]
        best = min((space for space in spaces if space >= length), default=None)
        if best is None:
            if len(spaces) == self.count:
                closed.append(self._open.pop(spaces.index(min(spaces)))[1])
            self._open.append((self.capacity, []))
            at, best = len(self._open) - 1, self.capacity
        else:
            at = spaces.index(best)
        items = [*self._open[at][1], item]
        if best == length:
            del self._open[at]
            closed.append(items)
        else:
            self._open[at] = (best - length, items)
        return closed

    def flush(self) -> list[list[int]]:
        """Close every open row, oldest first."""
        closed, self._open = [items for _, items in self._open], []
        return closed

    def state_dict(self) -> dict[str, Any]:
        """The open rows, as plain JSON."""
        return {"open": [[space, list(items)] for space, items in self._open]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._open = [(space, list(items)) for space, items in state["open"]]


def online_best_fit(lengths: NDArray[np.int64], capacity: int, seed: int, *, count: int) -> Bins:
    """`OpenRows` over documents in the order they are given, which the rows keep: `seed` is not read.

    Args:
        lengths: Tokens of each document. [documents]
        capacity: Tokens a row holds at most.
        seed: As of every packer.
        count: Rows open at a time.

    Raises:
        ValueError: A length is below 1 or above `capacity`.
    """
    packer = OpenRows(capacity, count)
    rows = [row for item, length in enumerate(np.asarray(lengths).tolist()) for row in packer.push(item, length)]
    rows += packer.flush()
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    return Bins(np.fromiter((item for row in rows for item in row), np.int64), offsets.astype(np.int64))
