"""Documents one after another, cut where a row is full."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from seqtune.packing.bins import Bins, offsets_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


def wrapped(lengths: NDArray[np.int64], capacity: int, seed: int) -> Bins:
    """Put documents one after another in the order given and cut every `capacity` tokens.

    Only the last row can be short, and nothing is lost, but documents are cut, those that would fit a row too. A
    length may be above `capacity`. Neither documents nor rows change their order: `seed` is not read.

    Args:
        lengths: Tokens of each document. [documents]
        capacity: Tokens a row holds at most.
        seed: As of every packer.

    Raises:
        ValueError: A length is below 1.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and lengths.min() < 1:
        raise ValueError(f"lengths are at least 1, not {lengths.min()}")
    firsts = offsets_of(lengths)
    total = int(firsts[-1])
    edges = np.concatenate([firsts, np.arange(0, total, capacity)])
    edges.sort(kind="stable")  # merges the two ascending runs
    edges = edges[np.concatenate([[True], edges[1:] != edges[:-1]])]
    begins = edges[:-1]
    documents = np.searchsorted(firsts, begins, side="right") - 1
    rows = np.bincount(begins // capacity)
    return Bins(documents, offsets_of(rows), starts=begins - firsts[documents], sizes=np.diff(edges))
