"""The contract, and numbers worked by hand."""

import pytest
import torch
from acme.gmpo import gmpo_loss

from seqtune.testing import check_objective


def test_contract() -> None:
    check_objective("gmpo")
    check_objective("gmpo", advantage="leave_one_out", truncated="drop")


def test_by_hand() -> None:
    """Log ratios 0.5 and 0.1, A = 1: exp((0.4 + 0.1) / 2) = exp(0.25), where GSPO has exp(0.3), clipped as a whole;
    -0.5 and 0.1, A = -1: exp((-0.4 + 0.1) / 2) = exp(-0.15).
    """
    log_ratio = torch.tensor([[0.5, 0.1, 9.0], [-0.5, 0.1, 9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    old, advantages = torch.full((2, 3), -2.0), torch.tensor([1.0, -1.0])
    loss, metrics = gmpo_loss(old + log_ratio, old, advantages, mask, epsilon_low=0.4, epsilon_high=0.4, denominator=2)
    assert loss.item() == pytest.approx((-1.2840254 + 0.8607080) / 2, abs=1e-6)
    assert metrics["policy/weight_mean"].item() == pytest.approx((1.2840254 + 0.8607080) / 2, abs=1e-6)
