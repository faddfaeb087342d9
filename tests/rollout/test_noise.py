"""The noise: standard Gumbel, and a function of (seed, step, index) alone."""

from __future__ import annotations

import math

import torch

from seqtune.rollout.noise import gumbel, seed_of


def test_mean_and_variance_are_those_of_a_standard_gumbel() -> None:
    noise = gumbel(torch.arange(400), 0, 1000).double()
    assert abs(noise.mean() - 0.5772156649) < 0.01  # standard error 0.002
    assert abs(noise.var() - math.pi**2 / 6) < 0.03
    assert noise.isfinite().all()


def test_neighbouring_seeds_steps_and_indices_are_uncorrelated() -> None:
    base = gumbel(torch.arange(300), 5, 300)
    for other in (gumbel(torch.arange(1, 301), 5, 300), gumbel(torch.arange(300), 6, 300), base.roll(1, 1), base.T):
        pair = torch.stack([base.flatten(), other.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.015  # 5 standard errors of 90000 pairs


def test_a_row_does_not_depend_on_its_batch() -> None:
    seeds = torch.tensor([7, 2**62, 0])
    together = gumbel(seeds, 3, 50)
    for i, seed in enumerate(seeds):
        torch.testing.assert_close(gumbel(seed[None], 3, 50)[0], together[i], rtol=0, atol=0)
    torch.testing.assert_close(gumbel(seeds, 3, 20), together[:, :20], rtol=0, atol=0)


def test_seeds_are_pinned() -> None:
    """A change here changes every run: old runs can no longer be repeated or resumed."""
    assert seed_of(0, 0, 0, 0) == seed_of(0, 0, 0, 0) != seed_of(0, 0, 0, 1)
    assert 0 <= seed_of(1, -2, 3) < 2**63
    expected = torch.tensor([-0.119713, 1.821979, 0.366509, 1.579143])
    torch.testing.assert_close(gumbel(torch.tensor([12345]), 3, 4)[0], expected, rtol=1e-5, atol=1e-6)
