"""Best-fit-decreasing: worked rows, properties, equality with a slow placing one document at a time, speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqtune.packing.best_fit import Bins, best_fit, one_each

CASES = st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=60))
)


def slow_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Place one document at a time: stable longest first, fullest row that fits, the first opened of equals."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        filled = [sum(lengths[other] for other in row) for row in rows]
        fitting = [at for at, used in enumerate(filled) if used + lengths[index] <= capacity]
        if fitting:
            rows[max(fitting, key=lambda at: filled[at])].append(index)
        else:
            rows.append([index])
    return rows


def as_lengths(bins: Bins, lengths: list[int]) -> list[list[int]]:
    return sorted([[lengths[index] for index in row] for row in bins], reverse=True)


@pytest.mark.parametrize(
    ("capacity", "lengths", "rows"),
    [
        (10, [7, 6, 5, 4, 3, 3, 2, 2], [[7, 3], [6, 4], [5, 3, 2], [2]]),
        (8, [8, 6, 7, 5, 2, 3], [[8], [7], [6, 2], [5, 3]]),
        (8, [3, 3, 2, 2, 2, 2, 2], [[3, 3, 2], [2, 2, 2, 2]]),
        (4, [3, 3, 3], [[3], [3], [3]]),
        (5, [], []),
    ],
)
def test_worked_rows(capacity: int, lengths: list[int], rows: list[list[int]]) -> None:
    """By hand. Capacity 10: 7, 6 and 5 open rows; 4 fills the 6; a 3 fills the 7, the next goes beside 5; 2 fills
    that row; the last 2 fits nowhere."""
    assert as_lengths(best_fit(np.array(lengths, dtype=np.int64), capacity, 0), lengths) == rows


@given(CASES, st.integers(0, 9))
@example((6, [1] * 13), 0)
@example((7, [4] * 5 + [3] * 7), 1)
@settings(deadline=None, max_examples=300)
def test_properties(case: tuple[int, list[int]], seed: int) -> None:
    capacity, lengths = case
    array = np.array(lengths, dtype=np.int64)
    for packer in (best_fit, one_each):
        bins = packer(array, capacity, seed)
        assert sorted(bins.indices.tolist()) == list(range(len(lengths)))
        assert bins.offsets[0] == 0
        assert bins.offsets[-1] == len(lengths)
        assert all(len(row) > 0 and array[row].sum() <= capacity for row in bins)
        again = packer(array, capacity, seed)
        assert np.array_equal(bins.indices, again.indices)
        assert np.array_equal(bins.offsets, again.offsets)


@given(CASES)
@settings(deadline=None, max_examples=300)
def test_equals_placing_one_at_a_time(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    bins = best_fit(np.array(lengths, dtype=np.int64), capacity, 0)
    assert sorted(row.tolist() for row in bins) == sorted(slow_best_fit(lengths, capacity))


@given(CASES)
@settings(deadline=None)
def test_order_of_documents_does_not_change_the_fill(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    shuffled = sorted(lengths)
    fills = [
        sorted(sum(row) for row in as_lengths(best_fit(np.array(some, dtype=np.int64), capacity, 0), some))
        for some in (lengths, shuffled)
    ]
    assert fills[0] == fills[1]


def test_ties_keep_the_order_of_documents() -> None:
    bins = best_fit(np.array([2, 2, 2, 2]), 4, 0)
    assert sorted(row.tolist() for row in bins) == [[0, 1], [2, 3]]


def test_seed_orders_rows_only() -> None:
    lengths = np.arange(1, 200)
    first, second = (best_fit(lengths, 256, seed) for seed in (0, 1))
    assert [row.tolist() for row in first] != [row.tolist() for row in second]
    assert sorted(row.tolist() for row in first) == sorted(row.tolist() for row in second)
    assert [lengths[row].max() for row in first] != sorted((lengths[row].max() for row in first), reverse=True)


@pytest.mark.parametrize("lengths", [[0], [1, 9], [-1]])
def test_lengths_out_of_range_are_refused(lengths: list[int]) -> None:
    for packer in (best_fit, one_each):
        with pytest.raises(ValueError, match="1 to 8"):
            packer(np.array(lengths), 8, 0)


def test_rows_are_indexed_from_the_start() -> None:
    bins = one_each(np.array([1, 2]), 4, 0)
    with pytest.raises(IndexError):
        bins[2]
    with pytest.raises(IndexError):
        bins[-1]


def test_a_hundred_thousand_documents_in_a_second() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 100_000).astype(np.int64).clip(1, 2048)
    started = time.process_time()
    bins = best_fit(lengths, 2048, 0)
    assert time.process_time() - started < 1
    assert lengths.sum() / (len(bins) * 2048) > 0.999
