"""The loss of a policy objective: the same, of a rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from seqtune.objectives.reduce import at_least_fp32, divided, masked, masked_mean

if TYPE_CHECKING:
    from torch import Tensor


def gmpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logps: Tensor | None = None,
    *,
    epsilon_low: float,
    epsilon_high: float,
    denominator: float | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Geometric mean of the clipped ratios of a completion (https://arxiv.org/abs/2507.20673).

        L = -(1/B) Σ_i A_i exp((1/n_i) Σ_t c_{i,t})     l = log (π/π_old)(y_{i,t})
        c = min(l, ε_high) if A_i > 0, else max(l, -ε_low)

    Args:
        logps: log π(y_t), nats, `[B, T]`; `old_logps` alike, of the policy that sampled.
        advantages: A, `[B]`; NaN leaves a completion out.
        mask: Non-zero on the tokens of completions, `[B, T]`.
        ref_logps: Not read.
        epsilon_low: ε_low, nats.
        epsilon_high: ε_high, nats.
        denominator: Completions of the whole optimiser step; 0 where it trains nothing.
    """
    log_ratio = masked(at_least_fp32(logps) - at_least_fp32(old_logps), mask)
    trained = mask.bool().any(1) & advantages.isfinite()
    a = masked(at_least_fp32(advantages), trained)
    c = torch.where(a.unsqueeze(1) > 0, log_ratio.clamp(max=epsilon_high), log_ratio.clamp(min=-epsilon_low))
    weight = masked_mean(c, mask, dim=1).exp()
    return -divided((a * weight).sum(), denominator), {"policy/weight_mean": masked_mean(weight.detach(), trained)}
