"""Estimators against worked numbers and against what they claim: unbiased, inside [0, 1], blind to order."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtune.evaluation.stats import bootstrap, maj_at_k, pass_at_k, wilson


def test_pass_at_k_worked() -> None:
    """n=5, c=2, k=2: of C(5,2) = 10 pairs C(3,2) = 3 hold no correct one: 1 - 3/10."""
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert pass_at_k(5, 2, 4) == 1.0  # any 4 of 5 hold one of the 2
    assert pass_at_k(5, 0, 5) == 0.0
    assert pass_at_k(10_000, 1, 1) == pytest.approx(1e-4)


@given(st.integers(1, 12), st.data(), st.floats(0, 1))
def test_pass_at_k_is_unbiased(n: int, data: st.DataObject, p: float) -> None:
    """Its mean over the binomial number of correct samples is 1 - (1 - p)^k; the naive 1 - (1 - c/n)^k is not."""
    k = data.draw(st.integers(1, n))
    mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-9)


@pytest.mark.parametrize(("n", "correct", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)])
def test_undefined_pass_at_k_is_refused(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(n, correct, k)


def test_majority_worked() -> None:
    assert maj_at_k(["7", "7", "8"], [1, 1, 0], 3) == 1.0
    assert maj_at_k(["8", "7", "8"], [0, 1, 0], 3) == 0.0
    assert maj_at_k(["7", "8"], [1, 0], 2) == 0.5  # a tie, half of it right
    assert maj_at_k(["7", "8", "9"], [1, 0, 0], 3) == pytest.approx(1 / 3)
    assert maj_at_k(["7", None, None], [1, 0, 0], 3) == 1.0  # no answer is no vote
    assert maj_at_k([None, None], [0, 0], 2) == 0.0


def test_majority_averages_separate_groups() -> None:
    """k=2 of five: (7, 7) right, (8, 7) a tie, the fifth is left over: (1 + 0.5) / 2."""
    assert maj_at_k(["7", "7", "8", "7", "8"], [1, 1, 0, 1, 0], 2) == 0.75
    assert maj_at_k(["7", "8", "8", "7"], [1, 0, 0, 1], 1) == 0.5
    for k in (0, 3):
        with pytest.raises(ValueError, match="not defined"):
            maj_at_k(["7", "8"], [1, 0], k)


@given(st.lists(st.sampled_from(["7", "8", "9", None]), min_size=1, max_size=5))
def test_the_vote_does_not_depend_on_the_order(answers: list[str | None]) -> None:
    """Ties are shared, so no order of the samples is favoured."""
    found = {
        round(maj_at_k(order, [answer == "7" for answer in order], len(order)), 12) for order in permutations(answers)
    }
    assert len(found) == 1


def test_wilson_worked() -> None:
    """8 of 10 at 95 %: (0.8 + 0.19207 ± 1.95996 sqrt(0.016 + 0.0096036)) / 1.38415 = 0.4902 and 0.9433."""
    found = wilson(8, 10)
    assert (found.value, found.n) == (0.8, 10)
    assert (found.low, found.high) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    none = wilson(0, 500)
    assert (none.low, none.high) == (0.0, pytest.approx(0.0076242, abs=1e-6))  # z² / (n + z²)
    narrow = wilson(8, 10, confidence=0.5)
    assert found.low < narrow.low < 0.8 < narrow.high < found.high


@given(st.integers(1, 2000), st.data())
def test_wilson_stays_inside_and_is_symmetric(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    found, mirrored = wilson(successes, n), wilson(n - successes, n)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((found.low, found.high))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (2, 1), (-1, 3)])
def test_no_proportion_is_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(successes, n)


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, size=400)
    found = bootstrap(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert found == bootstrap(values)
    assert found != bootstrap(values, seed=1)
    assert bootstrap(values, confidence=0.5).low > found.low


def test_bootstrap_weighs_and_draws_examples_with_their_weight() -> None:
    found = bootstrap([1.0, 3.0], weights=[3.0, 1.0])
    assert found.value == pytest.approx(1.5)  # (3 + 3) / 4
    assert (found.low, found.high) == (1.0, 3.0)  # one example twice
    same = bootstrap([2.0] * 7, weights=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert (same.low, same.value, same.high) == (2.0, 2.0, 2.0)
    alone = bootstrap([4.0, 9.0], weights=[1.0, 0.0])  # draws without weight are left out
    assert (alone.low, alone.value, alone.high) == (4.0, 4.0, 4.0)


def test_bootstrap_of_many_examples_works_in_blocks() -> None:
    """30000 examples times 300 resamples are drawn in three blocks; the last is smaller."""
    values = np.arange(30_000) % 2
    found = bootstrap(values.astype(float), resamples=300)
    assert found.low < 0.5 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(30_000), rel=0.2)


@pytest.mark.parametrize("weights", [None, [0.0]])
def test_nothing_has_no_mean(weights: list[float] | None) -> None:
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([] if weights is None else [1.0], weights=weights)
