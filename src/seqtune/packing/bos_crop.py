"""Rows that are always full, at the price of documents whose ends are thrown away."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from seqtune.packing.bins import Bins, checked, offsets_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


def bos_crop(lengths: NDArray[np.int64], capacity: int, seed: int, *, buffer: int) -> Bins:
    """Fill one row at a time with the longest document of a buffer that fits; where none fits, crop the shortest.

    Every row but the last is full and begins with the beginning of a document, as every document in it does. What is
    cropped off is lost: a third of the tokens is common. The pretraining loader of nanochat, except that there a
    document longer than a row waits until it is the shortest, and here it is cut to a row beforehand. Rows keep the
    order they were filled in: `seed` is not read.

    Args:
        lengths: Tokens of each document. [documents]
        capacity: Tokens a row holds at most.
        seed: As of every packer.
        buffer: Documents to choose from.

    Raises:
        ValueError: A length is below 1 or above `capacity`.
    """
    lengths = checked(lengths, capacity)
    waiting: dict[int, deque[int]] = {}
    bits = 0  # bit `l` is set where a document of length `l` waits
    items, sizes, per_row = [], [], [0]
    space = capacity
    arriving = enumerate(lengths.tolist())
    inside = 0
    while True:
        while inside < buffer and (one := next(arriving, None)) is not None:
            item, length = one
            waiting.setdefault(length, deque()).append(item)
            bits |= 1 << length
            inside += 1
        if not inside:
            break
        length = (bits & ((2 << space) - 1)).bit_length() - 1
        if length < 1:
            length = (bits & -bits).bit_length() - 1  # the shortest
        same = waiting[length]
        items.append(same.popleft())
        if not same:
            del waiting[length]
            bits ^= 1 << length
        inside -= 1
        sizes.append(min(length, space))
        space -= sizes[-1]
        per_row[-1] += 1
        if not space:
            per_row.append(0)
            space = capacity
    if not per_row[-1]:
        per_row.pop()
    return Bins(
        np.array(items, dtype=np.int64),
        offsets_of(np.array(per_row, dtype=np.int64)),
        starts=np.zeros(len(items), dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
    )
