"""Next-fit: documents stay in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from seqtune.packing.bins import Bins, checked

if TYPE_CHECKING:
    from numpy.typing import NDArray


def next_fit(lengths: NDArray[np.int64], capacity: int, seed: int) -> Bins:
    """Fill one row at a time with documents in the order given; one that does not fit opens the next row.

    Neither documents nor rows change their order, which curricula and neighbourhoods of related documents need:
    `seed` is not read.

    Args:
        lengths: Tokens of each document. [documents]
        capacity: Tokens a row holds at most.
        seed: As of every packer.

    Raises:
        ValueError: A length is below 1 or above `capacity`.
    """
    lengths = checked(lengths, capacity)
    ends = np.cumsum(lengths)
    following = np.searchsorted(ends, ends - lengths + capacity, side="right").data  # where a row from here on ends
    starts = [0]
    while starts[-1] < len(lengths):
        starts.append(following[starts[-1]])
    return Bins(np.arange(len(lengths)), np.array(starts, dtype=np.int64))
