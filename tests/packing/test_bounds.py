"""Lower bounds: worked numbers, and below the best of all packings of small cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtune.packing.bos_crop import bos_crop
from seqtune.packing.bounds import l1, l2, report, weighted
from seqtune.packing.wrapped import wrapped


def fewest(lengths: list[int], capacity: int, rows: tuple[int, ...] = ()) -> int:
    """Rows of the best packing, by trying all."""
    if not lengths:
        return len(rows)
    first, *others = lengths
    ways = [(*rows[:at], used + first, *rows[at + 1 :]) for at, used in enumerate(rows) if used + first <= capacity]
    return min(fewest(others, capacity, tuple(way)) for way in [*ways, (*rows, first)])


@pytest.mark.parametrize(
    ("lengths", "capacity", "bounds"),
    [
        ([6] * 5, 10, (3, 5)),  # no two share a row
        ([7, 6, 5, 4, 3, 3, 2, 2], 10, (4, 4)),
        ([8, 8, 4, 4], 10, (3, 3)),  # 8 and 8 leave 4 tokens that no 4 can use: t = 4 says 2 + 1
        ([8, 8, 8, 4, 4, 4], 10, (4, 5)),  # t = 3: three alone, 12 tokens of 4s more
        ([], 10, (0, 0)),
        ([25], 10, (3, 3)),
    ],
)
def test_by_hand(lengths: list[int], capacity: int, bounds: tuple[int, int]) -> None:
    array = np.array(lengths, dtype=np.int64)
    assert (l1(array, capacity), l2(array, capacity)) == bounds


@given(st.integers(1, 12).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=7))))
@settings(deadline=None, max_examples=150)
def test_below_the_best_packing(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    array = np.array(lengths, dtype=np.int64)
    assert l1(array, capacity) <= l2(array, capacity) <= fewest(lengths, capacity)


@given(st.lists(st.integers(1, 8), max_size=6), st.lists(st.integers(0, 9), min_size=9, max_size=9))
@settings(deadline=None, max_examples=100)
def test_any_weights_bound(lengths: list[int], weights: list[int]) -> None:
    counts = np.bincount(np.array(lengths, dtype=np.int64), minlength=9)
    assert weighted(counts, np.array(weights), 8) <= fewest(lengths, 8)


def test_report_counts_what_was_cut() -> None:
    """Rows of 8: 14 and 7 and 5 give 8 | 6 2 | 5 3 | 2, so all three are cut, into 2, 2 and 2 pieces."""
    lengths = np.array([14, 7, 5])
    assert report(wrapped(lengths, 8, 0), lengths, 8) == {
        "bounds": {"l1": 4, "l2": 4},
        "split": {"documents": 3, "pieces": 6},
    }
    lengths = np.array([6, 6])
    assert report(bos_crop(lengths, 8, 0, buffer=2), lengths, 8) == {
        "bounds": {"l1": 2, "l2": 2},
        "cropped": {"documents": 1, "tokens": 4},
    }
