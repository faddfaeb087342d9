"""The worked example of the policy tests: one group of four completions with 5, 3, 4 and 2 tokens.

d = log π - log π_old; what padding holds is NaN, so that every test also shows that it does not matter.
"""

from __future__ import annotations

import torch
from torch import Tensor

LENGTHS = (5, 3, 4, 2)
ROWS, TOKENS = 4, 5
LIVE_TOKENS = 14


def padded(rows: list[list[float]], fill: float = float("nan")) -> Tensor:
    return torch.tensor([row + [fill] * (TOKENS - len(row)) for row in rows], dtype=torch.float64)


REWARDS = torch.tensor([1, 0, 0.25, 0], dtype=torch.float64)
MASK = torch.tensor([[t < n for t in range(TOKENS)] for n in LENGTHS])
OLD = padded([[-1.2, -0.7, -2.3, -0.1, -0.9], [-0.5, -1.6, -0.8], [-2, -0.3, -1.1, -0.6], [-0.4, -1.9]])
D = padded([[0.10, -0.05, 0.30, 0, -0.20], [0.25, -0.30, 0.08], [-0.10, 0.15, 0, 0.02], [-0.40, 0.10]])
REF = OLD + padded([[-0.05, 0.10, -0.20, 0, 0.15], [0.10, -0.10, 0.20], [0.05, 0, -0.15, 0.10], [0.20, -0.05]])
LOGPS = OLD + D
ENTROPIES = padded([[0.2, 1.5, 2, 0.1, 0.9], [0.4, 1.8, 0.3], [2.2, 0.1, 1, 0.5], [0.6, 1.2]])
SAMPLER = OLD + padded([[0.02, -0.01, 0.05, 0, 0.03], [-0.04, 0.02, 0], [0.01, 0, -0.02, 0.03], [0.06, -0.03]])


def near(value: Tensor, wanted: float | list[float] | Tensor) -> None:
    """Equal to five decimals, where the expected number is written with six."""
    torch.testing.assert_close(value.double(), torch.as_tensor(wanted, dtype=torch.float64), rtol=0, atol=2e-6)


def gradient_of(spec, advantages: Tensor, *, count: float = ROWS, logps: Tensor = LOGPS, mask: Tensor = MASK, **more):
    """Loss, gradient with respect to log π, and metrics of a spec's loss on the worked example."""
    leaf = logps.clone().requires_grad_()
    loss, metrics = spec.build()(
        leaf, more.pop("old_logps", OLD), advantages, mask, more.pop("ref_logps", None), denominator=count, **more
    )
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient, metrics
