"""Which documents share which row, and how packers put that together. `D` documents, `R` rows, `K` parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_FEW = 1000
"""Documents placed at once that are not worth an array operation of their own."""


@dataclass(frozen=True)
class Bins:
    """Which documents share which row.

    Args:
        indices: Documents, row after row. int64 [K]
        offsets: Row `r` holds `indices[offsets[r] : offsets[r + 1]]`. int64 [R + 1]
        starts: Token of its document at which each part starts; None where every document is whole. int64 [K]
        sizes: Tokens of each part; None where every document is whole. int64 [K]
        bound: Rows below which no packing of these documents goes, where the packer proved one.
    """

    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]
    starts: NDArray[np.int64] | None = None
    sizes: NDArray[np.int64] | None = None
    bound: int | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int64]:
        """The documents of one row."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.indices[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return (self[row] for row in range(len(self)))

    def parts(self, lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First token and number of tokens of every part, in the order of `indices`.

        Args:
            lengths: Tokens of each document, as the packer got them. [D]
        """
        if self.starts is None or self.sizes is None:
            return np.zeros(len(self.indices), dtype=np.int64), np.asarray(lengths, dtype=np.int64)[self.indices]
        return self.starts, self.sizes

    def check(self, lengths: NDArray[np.int64], capacity: int) -> None:
        """Check that no row is empty or too long, no part empty or outside its document, and no token in two rows.

        Whole documents must all be there; a packer that cuts may lose tokens, which the report counts.

        Args:
            lengths: Tokens of each document, as the packer got them. [D]
            capacity: Tokens a row holds at most.

        Raises:
            ValueError: The packer broke one of these; says which, and in which row.
        """
        indices, offsets = np.asarray(self.indices), np.asarray(self.offsets)
        whole = self.starts is None or self.sizes is None
        if not len(offsets) or offsets[0] or offsets[-1] != len(indices) or (np.diff(offsets) < 1).any():
            raise ValueError("its rows do not hold its parts one after another, at least one each")
        if len(indices) and (indices.min() < 0 or indices.max() >= len(lengths)):
            raise ValueError(f"it names documents from {indices.min()} to {indices.max()}, there are {len(lengths)}")
        if whole and (np.bincount(indices, minlength=len(lengths)) != 1).any():
            raise ValueError("not every document is in one row")
        starts, sizes = self.parts(lengths)
        ends = starts + sizes
        if not len(starts) == len(sizes) == len(indices):
            raise ValueError(f"{len(indices)} parts have {len(starts)} beginnings and {len(sizes)} sizes")
        if (starts < 0).any() or (sizes < 1).any() or (ends > np.asarray(lengths)[indices]).any():
            raise ValueError("a part is empty or leaves its document")
        if not whole:
            order = np.lexsort((starts, indices))
            one, other = order[:-1], order[1:]
            if ((indices[one] == indices[other]) & (ends[one] > starts[other])).any():
                raise ValueError("a token is in two parts")
        held = np.add.reduceat(sizes, offsets[:-1]) if len(indices) else sizes
        if (held > capacity).any():
            row = int(np.argmax(held > capacity))
            raise ValueError(f"row {row + 1} holds {held[row]} tokens, the capacity is {capacity}")


class Placement:
    """Rows being filled with documents in a fixed order, many equal rows at a time.

    Args:
        documents: How many there are.
    """

    def __init__(self, documents: int) -> None:
        self._row = np.empty(documents, dtype=np.int32 if documents < 2**31 else np.int64)
        self._rank = np.empty_like(self._row)
        self._few: list[tuple[int, int, int, int, int]] = []
        self._at = 0
        self.rows = 0
        """Rows opened."""

    def open(self, count: int) -> int:
        """Open rows; returns the first."""
        self.rows += count
        return self.rows - count

    def put(self, first: int, count: int, each: int, held: int) -> None:
        """Put the next documents, `each` into every row of `first` … `first + count - 1`, which hold `held` so far."""
        stop = self._at + count * each
        if count * each < _FEW:  # numpy would take longer to start than to work: expanded together
            if stop > self._at:
                self._few.append((self._at, first, count, each, held))
        else:
            self._row[self._at : stop] = np.repeat(np.arange(first, first + count), each)
            self._rank[self._at : stop] = np.tile(np.arange(held, held + each), count)
        self._at = stop

    def _expand(self) -> None:
        if self._few:
            at, first, count, each, held = np.array(self._few, dtype=np.int64).T
            sizes = count * each
            nth = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            into = np.repeat(at, sizes) + nth
            each = np.repeat(each, sizes)
            self._row[into] = np.repeat(first, sizes) + nth // each
            self._rank[into] = np.repeat(held, sizes) + nth % each
            self._few = []

    @property
    def row_of(self) -> NDArray[Any]:
        """Row of each document, in the order in which they were placed. [D]"""
        self._expand()
        return self._row

    def bins(self, order: NDArray[np.int64], seed: int, bound: int | None = None) -> Bins:
        """The rows in an order drawn from `seed`.

        Args:
            order: Documents in the order in which they were placed. [D]
            seed: Of the order of rows.
            bound: As of `Bins`.
        """
        self._expand()
        sizes = np.bincount(self._row, minlength=self.rows)
        shuffled = _permutation(self.rows, seed)
        offsets = offsets_of(sizes[shuffled])
        starts = np.empty(self.rows, dtype=np.int64)
        starts[shuffled] = offsets[:-1]
        indices = np.empty(len(order), dtype=np.int64)
        indices[starts[self._row] + self._rank] = order
        return Bins(indices, offsets, bound=bound)


def checked(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Lengths as int64.

    Raises:
        ValueError: A length is below 1 or above `capacity`.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and (lengths.min() < 1 or lengths.max() > capacity):
        raise ValueError(f"lengths are 1 to {capacity}, not {lengths.min()} to {lengths.max()}")
    return lengths


def longest_first(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Documents, longest first, equal ones in the order they came. [D]"""
    # numpy sorts 16-bit keys by radix, several times as fast as it merges longer ones.
    key = capacity - lengths
    return np.argsort(key.astype(np.uint16) if capacity <= 2**16 else key, kind="stable")


def histogram(lengths: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Distinct lengths, longest first, each with how many documents have it."""
    counts = np.bincount(lengths)
    values = np.flatnonzero(counts)[::-1]
    return list(zip(values.tolist(), counts[values].tolist(), strict=True))


def offsets_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of consecutive groups starts, and where the last ends. [groups + 1]"""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)])


def grouped(order: NDArray[np.int64], row_of: NDArray[np.int64], seed: int) -> Bins:
    """Bins of documents whose rows are known, in an order of rows drawn from `seed`; rows without any are left out.

    Args:
        order: Documents. [D]
        row_of: The row of each, in that order, which the documents of a row keep. [D]
        seed: Of the order of rows.
    """
    sizes = np.bincount(row_of)
    return shuffled(Bins(order[np.argsort(row_of, kind="stable")], offsets_of(sizes[sizes > 0])), seed)


def in_order(rows: list[list[int]]) -> Bins:
    """Bins of rows given as lists of documents."""
    offsets = offsets_of(np.fromiter(map(len, rows), np.int64, len(rows)))
    return Bins(np.fromiter((item for row in rows for item in row), np.int64, int(offsets[-1])), offsets)


def shuffled(bins: Bins, seed: int) -> Bins:
    """The same rows in an order drawn from `seed`; every document whole."""
    order = _permutation(len(bins), seed)
    sizes = np.diff(bins.offsets)[order]
    offsets = offsets_of(sizes)
    source = np.arange(len(bins.indices)) + np.repeat(bins.offsets[:-1][order] - offsets[:-1], sizes)
    return Bins(bins.indices[source], offsets, bound=bins.bound)


def _permutation(rows: int, seed: int) -> NDArray[np.int64]:
    # PCG64 by name: numpy may choose another default generator, which would change every packed data set.
    return np.random.Generator(np.random.PCG64(seed)).permutation(rows)
