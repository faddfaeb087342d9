"""The contract every objective keeps, and one number worked by hand."""

import torch
from acme.ipo import ipo_loss

from seqtune.testing import check_objective


def test_contract() -> None:
    check_objective("ipo")


def test_by_hand() -> None:
    """h = (-1 + 2) - (-4 + 3) = 2, the target is 1/(2 · 0.5) = 1, so L = 1."""
    logps = [torch.tensor([value]) for value in (-1.0, -4.0, -2.0, -3.0)]
    loss, metrics = ipo_loss(*logps, tau=0.5, denominator=1)
    assert loss == 1
    assert metrics["rewards/margin"] == 2
