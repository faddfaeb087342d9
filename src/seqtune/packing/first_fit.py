"""First-fit in the order of the documents, and first-fit-decreasing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from seqtune.packing.bins import Bins, Placement, checked, histogram, longest_first, offsets_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


def first_fit(lengths: NDArray[np.int64], capacity: int, seed: int) -> Bins:
    """Place each document, in the order given, into the first row that still holds it.

    Rows keep the order in which they were opened: `seed` is not read. A tree over the rows holds the largest space
    below each node, so that a document costs the logarithm of the number of rows.

    Args:
        lengths: Tokens of each document. [documents]
        capacity: Tokens a row holds at most.
        seed: As of every packer.

    Raises:
        ValueError: A length is below 1 or above `capacity`.
    """
    lengths = checked(lengths, capacity)
    # Two neighbouring rows hold more than `capacity` together: the first document of the second did not fit.
    most = 2 * -(-int(lengths.sum()) // capacity) + 1
    size = 1 << (most - 1).bit_length()
    largest = [capacity] * (2 * size)
    rows: list[int] = []
    for length in lengths.tolist():
        node = 1
        while node < size:
            node *= 2
            if largest[node] < length:
                node += 1
        rows.append(node - size)
        value = largest[node] - length
        while largest[node] != value:
            largest[node] = value
            if node == 1:
                break
            beside = largest[node ^ 1]
            value = max(value, beside)
            node //= 2
    row_of = np.array(rows, dtype=np.int64)
    return Bins(np.argsort(row_of, kind="stable"), offsets_of(np.bincount(row_of)))


def first_fit_decreasing(lengths: NDArray[np.int64], capacity: int, seed: int) -> Bins:
    """Place documents, longest first, into the first row that still holds them; the rows are then shuffled.

    Equal lengths are placed together: walking the rows from the first, one with space `r` takes `r // length` of
    them. Neighbouring rows with the same content are held as one range. Arguments and errors as
    `seqtune.packing.best_fit.best_fit`.
    """
    lengths = checked(lengths, capacity)
    placement = Placement(len(lengths))
    spaces, firsts, counts, helds = (np.empty(0, dtype=np.int64) for _ in range(4))  # of ranges of rows, in their order
    documents = histogram(lengths)
    shortest = documents[-1][0] if documents else 0
    for length, left in documents:
        fits = np.flatnonzero(spaces >= length)
        room = np.cumsum(spaces[fits] // length * counts[fits])
        if not len(room) or room[-1] < left:
            missing = left - (int(room[-1]) if len(room) else 0)
            opened = -(-missing // (capacity // length))
            fits = np.append(fits, len(spaces))
            firsts = np.append(firsts, placement.open(opened))
            spaces, counts, helds = np.append(spaces, capacity), np.append(counts, opened), np.append(helds, 0)
            room = np.append(room, left - missing + opened * (capacity // length))
        used = int(np.searchsorted(room, left)) + 1  # ranges that take some
        for at in fits[: used - 1].tolist():
            each = int(spaces[at]) // length
            placement.put(int(firsts[at]), int(counts[at]), each, int(helds[at]))
            spaces[at] -= each * length
            helds[at] += each
        at = int(fits[used - 1])
        left -= int(room[used - 2]) if used > 1 else 0
        space, first, count, held = int(spaces[at]), int(firsts[at]), int(counts[at]), int(helds[at])
        each = space // length
        full, part = divmod(left, each)
        placement.put(first, full, each, held)
        placement.put(first + full, int(part > 0), part, held)
        into = [
            (space - each * length, first, full, held + each),
            (space - part * length, first + full, int(part > 0), held + part),
            (space, first + full + (part > 0), count - full - (part > 0), held),
        ]
        pieces = np.array([piece for piece in into if piece[2]], dtype=np.int64).reshape(-1, 4)
        spaces, firsts, counts, helds = (
            np.concatenate([old[:at], new, old[at + 1 :]])
            for old, new in zip((spaces, firsts, counts, helds), pieces.T, strict=True)
        )
        open_still = spaces >= shortest
        spaces, firsts, counts, helds = (old[open_still] for old in (spaces, firsts, counts, helds))
    return placement.bins(longest_first(lengths, capacity), seed)
