"""A buffer of documents out of which one row at a time is filled, for documents that arrive one by one."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from seqtune.packing.bins import Bins, checked, in_order

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OnlineBuffer:
    """Fills one row at a time with the longest document of a buffer that still fits.

    Of equally long ones the first that came is taken. Where none fits, the row is closed. Odd lengths could wait for
    ever in a stream: a document that has waited for more than `patience` rows opens the next one.

    Args:
        capacity: Tokens a row holds at most.
        size: Documents the buffer holds before it gives any away.
        patience: Rows a document waits at most before it opens one.
    """

    def __init__(self, capacity: int, size: int, patience: int) -> None:
        self.capacity, self.size, self.patience = capacity, size, patience
        self._waiting: dict[int, tuple[int, int]] = {}
        """Length and number of rows at arrival of each item, in the order they came."""
        self._by_length: dict[int, deque[int]] = {}
        self._lengths = 0
        """Bit `l` is set where an item of length `l` waits."""
        self._row: list[int] = []
        self._space = capacity
        self._rows = 0

    def push(self, item: int, length: int) -> list[list[int]]:
        """Take an item; returns the rows this closed.

        Raises:
            ValueError: `length` is below 1 or above the capacity.
        """
        if not 1 <= length <= self.capacity:
            raise ValueError(f"a length is 1 to {self.capacity}, not {length}")
        self._wait(item, length, self._rows)
        closed: list[list[int]] = []
        while len(self._waiting) >= self.size:
            closed += self._step()
        return closed

    def flush(self) -> list[list[int]]:
        """Close a row after the other until nothing waits."""
        closed: list[list[int]] = []
        while self._waiting:
            closed += self._step()
        return closed + self._close() if self._row else closed

    def state_dict(self) -> dict[str, Any]:
        """What waits and the open row, as plain JSON."""
        waiting = [[item, length, since] for item, (length, since) in self._waiting.items()]
        return {"waiting": waiting, "row": list(self._row), "space": self._space, "rows": self._rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._waiting, self._by_length, self._lengths = {}, {}, 0
        for item, length, since in state["waiting"]:
            self._wait(item, length, since)
        self._row, self._space, self._rows = list(state["row"]), state["space"], state["rows"]

    def _wait(self, item: int, length: int, since: int) -> None:
        self._waiting[item] = (length, since)
        self._by_length.setdefault(length, deque()).append(item)
        self._lengths |= 1 << length

    def _step(self) -> list[list[int]]:
        """Put one item into the row, after closing it where none fits; returns the rows closed."""
        closed: list[list[int]] = []
        length = (self._lengths & ((2 << self._space) - 1)).bit_length() - 1
        if length < 1:
            closed = self._close()
            length = self._lengths.bit_length() - 1
        if not self._row:
            first, since = next(iter(self._waiting.values()))
            length = first if self._rows - since > self.patience else length
        items = self._by_length[length]
        item = items.popleft()
        if not items:
            del self._by_length[length]
            self._lengths ^= 1 << length
        del self._waiting[item]
        self._row.append(item)
        self._space -= length
        return closed if self._space else closed + self._close()

    def _close(self) -> list[list[int]]:
        row, self._row, self._space = self._row, [], self.capacity
        self._rows += 1
        return [row]


def online_buffer(lengths: NDArray[np.int64], capacity: int, seed: int, *, buffer: int, patience: int) -> Bins:
    """`OnlineBuffer` over documents in the order they are given; rows keep the order they were closed in, `seed` is
    not read.

    Args:
        lengths: Tokens of each document. [documents]
        capacity: Tokens a row holds at most.
        seed: As of every packer.
        buffer: Documents the buffer holds.
        patience: Rows a document waits at most before it opens one.

    Raises:
        ValueError: A length is below 1 or above `capacity`.
    """
    packer = OnlineBuffer(capacity, buffer, patience)
    rows = [row for item, length in enumerate(checked(lengths, capacity).tolist()) for row in packer.push(item, length)]
    return in_order(rows + packer.flush())
