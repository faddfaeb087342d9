"""Estimates from a sample of examples, each with a confidence interval. Imports numpy only."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Estimate:
    """A number measured on a sample.

    Args:
        value: The estimate.
        low: Lower end of its confidence interval.
        high: Upper end.
        n: Independent examples it is from.
    """

    value: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """A proportion with the Wilson score interval (https://doi.org/10.1080/01621459.1927.10502953).

    Unlike value ± z·se it stays inside [0, 1] and does not collapse at 0 and 1.

    Raises:
        ValueError: `n` is 0, or `successes` is not between 0 and `n`.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(p, low, high, n)


def bootstrap(
    values: Sequence[float] | NDArray[np.float64],
    *,
    weights: Sequence[float] | NDArray[np.float64] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A mean with the percentile bootstrap interval over examples (https://doi.org/10.1214/aos/1176344552).

    Args:
        values: `[n]`, one an example.
        weights: `[n]`, not negative: the mean is Σ w x / Σ w, and an example is drawn with its weight. None weighs all
            examples equally.
        confidence: Level of the interval.
        resamples: Samples of size n drawn with replacement.
        seed: Of the draws.

    Raises:
        ValueError: No value, or no positive weight.
    """
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    if not x.size or not w.sum() > 0:
        raise ValueError("a mean needs at least one value")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, (1 << 22) // x.size)  # bounds the memory of one block of draws
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(0, x.size, size=(count, x.size))
        total = w[drawn].sum(1)
        with np.errstate(invalid="ignore"):
            means[start : start + count] = (w * x)[drawn].sum(1) / total
    low, high = np.nanquantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(float((w * x).sum() / w.sum()), float(low), float(high), int(x.size))


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples is correct, estimated without bias from n ≥ k samples of one problem.

    pass@k = 1 - C(n - c, k) / C(n, k) (https://arxiv.org/abs/2107.03374, eq. 1); c: `correct`.

    Raises:
        ValueError: Not 1 ≤ k ≤ n, or not 0 ≤ correct ≤ n.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@{k} of {correct} correct among {n} samples is not defined")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool | float], k: int) -> float:
    """Probability that the most frequent answer of k samples is correct (https://arxiv.org/abs/2203.11171).

    The n samples are cut, in order, into ⌊n/k⌋ separate groups of k and the outcomes averaged: samples are drawn
    independently, so this is unbiased. A tie counts as the share of the tied answers that are correct, which is what
    breaking it by lot gives on average. None is no answer and has no vote; a group without a vote is wrong.

    Args:
        answers: `[n]`, the answer of each sample in a form in which equal answers are equal.
        correct: `[n]`, whether the sample is correct. Where equal answers disagree, the answer counts their mean.
        k: Samples that vote.

    Raises:
        ValueError: Not 1 ≤ k ≤ n.
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"maj@{k} of {n} samples is not defined")
    outcomes = [_majority(answers[start : start + k], correct[start : start + k]) for start in range(0, n - n % k, k)]
    return sum(outcomes) / len(outcomes)


def _majority(answers: Sequence[Any], correct: Sequence[bool | float]) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    tied = {answer for answer, count in votes.items() if count == most}
    right = [float(good) for answer, good in zip(answers, correct, strict=True) if answer in tied]
    return sum(right) / (most * len(tied))  # every tied answer has `most` votes: the mean over answers
