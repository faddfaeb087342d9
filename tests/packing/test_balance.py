"""Balance: worked loads, never worse than the order given, the shares of realistic rows, calibration."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtune.packing.balance import Cost, balance, calibrated, default_cost, straggler_share
from seqtune.packing.best_fit import best_fit

METHODS: list[Literal["lpt", "karmarkar_karp"]] = ["lpt", "karmarkar_karp"]


@pytest.mark.parametrize("method", METHODS)
def test_by_hand(method: Literal["lpt", "karmarkar_karp"]) -> None:
    """Two processes, 9 7 | 6 2 in order: 15 and 9, so 6 of 30 wait. 9 with 2 and 7 with 6: 11 and 13, 2 of 26 wait."""
    found = balance(np.array([9.0, 7, 6, 2]), 2, method)
    assert sorted(sorted(column) for column in found.slots.T.tolist()) == [[0, 3], [1, 2]]
    assert found.before == pytest.approx(6 / 30)
    assert found.after == pytest.approx(2 / 26)


def test_swaps_mend_what_lpt_leaves() -> None:
    """8 7 6 5 4 0 to two processes: 8 5 0 and 7 6 4 are 13 and 17; exchanging 6 and 5, then 5 and 4 …: 15 and 15."""
    found = balance(np.array([8.0, 7, 6, 5, 4, 0]), 2)
    assert found.after == 0


@given(st.integers(1, 5), st.integers(0, 5), st.data(), st.sampled_from(METHODS))
@settings(deadline=None, max_examples=150)
def test_never_worse(
    processes: int, micro_steps: int, data: st.DataObject, method: Literal["lpt", "karmarkar_karp"]
) -> None:
    number = processes * micro_steps
    costs = np.array(data.draw(st.lists(st.floats(0, 1e6), min_size=number, max_size=number)))
    found = balance(costs, processes, method)
    assert found.slots.shape == (micro_steps, processes)
    assert sorted(found.slots.ravel().tolist()) == list(range(number))
    assert 0 <= found.after <= found.before <= 1
    assert found.after == straggler_share(costs, found.slots)


@pytest.mark.parametrize("method", METHODS)
def test_realistic_rows(method: Literal["lpt", "karmarkar_karp"]) -> None:
    """Eight processes with four rows each, attention alone: a random order waits two fifths of the time, and the
    greatest load is at most 1.2 times the mean afterwards."""
    lengths = np.random.default_rng(0).lognormal(np.log(400), 1.1, 20_000).clip(1, 8192).astype(np.int64)
    bins = best_fit(lengths, 8192, 0)
    costs = Cost(0, 1).of(lengths[bins.indices], bins.offsets)
    found = [balance(costs[first : first + 32], 8, method) for first in range(0, len(costs) - 32, 32)]
    assert np.mean([1 / (1 - step.before) for step in found]) > 1.3
    assert np.mean([1 / (1 - step.after) for step in found]) < 1.2


def test_cost_of_rows() -> None:
    """Rows (2, 3) and (4): 10 Σ l + Σ l² = 50 + 13 and 40 + 16."""
    assert Cost(10, 1).of(np.array([2, 3, 4]), np.array([0, 2, 3])).tolist() == [63, 56]
    assert default_cost(4096) == Cost(24576, 1)


def test_calibration() -> None:
    tokens, squares = np.array([1000.0, 1000, 4000]), np.array([1e5, 1e6, 2e6])
    found = calibrated(tokens, squares, 3e-6 * tokens + 2e-9 * squares)
    assert found == pytest.approx((3e-6, 2e-9))
    assert calibrated(tokens, squares, 3e-6 * tokens - 1e-10 * squares).quadratic == 0
    with pytest.raises(ValueError, match="are needed"):
        calibrated([1, 2], [3, 6], [1, 2])


def test_unequal_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows"):
        balance(np.ones(3), 2)


def test_waiting_after_every_micro_step() -> None:
    """9 7 | 2 6: sums 11 and 13 wait 2 of 26; step by step 9 + 6 pass for each of two, so 6 of 30."""
    slots = np.array([[0, 1], [3, 2]])
    costs = np.array([9.0, 7, 6, 2])
    assert straggler_share(costs, slots) == pytest.approx(2 / 26)
    assert straggler_share(costs, slots, every_micro_step=True) == pytest.approx(6 / 30)
