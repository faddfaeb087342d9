"""ESPO (entropy): segments by entropy, each with its own clip range.

Shapes and symbols as in `seqtune.objectives.policy`. `entropies` are those of the policy that sampled: taken again from
the policy that learns they would move what they decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from seqtune.objectives.policy import Clip, policy_loss, segment_means, segment_slots
from seqtune.objectives.reduce import at_least_fp32, masked, masked_mean

if TYPE_CHECKING:
    from torch import Tensor


def most_uncertain(entropies: Tensor, mask: Tensor, share: float) -> Tensor:
    """1 on the ceil(share × n_i) tokens of largest entropy of each row, the earlier of equals first; 0 on the rest."""
    live = mask.bool()
    number = (share * live.sum(1, keepdim=True).double() - 1e-9).ceil().clamp(min=1)  # 0.3 × 50 in float32 is above 15
    return (_rank(-entropies, live) < number).long()


def entropy_bins(entropies: Tensor, mask: Tensor, count: int) -> Tensor:
    """Number of the bin of each token, 0..count-1 from low to high entropy, equally many tokens of its row in each."""
    live = mask.bool()
    n = live.sum(1, keepdim=True).clamp(min=1)
    return torch.where(live, _rank(entropies, live) * count // n, 0)


def _rank(values: Tensor, live: Tensor) -> Tensor:
    """Place of each token among the live ones of its row, smallest first, the earlier of equal ones first."""
    order = torch.where(live, at_least_fp32(values), torch.inf).argsort(dim=1, stable=True)
    return torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).to(order).expand_as(order))


def clip_width(
    entropies: Tensor, mask: Tensor, segments: Tensor, *, alpha: float, limits: tuple[float, float]
) -> Tensor:
    """φ = 1 + α (H̄_k - H̄) / H̄ of the segment of each token, `[B, T]`: how much wider its clip range is than ε.

    H̄_k is the mean entropy of the segment, H̄ that of the completion. Weighed by tokens the mean of φ is 1 while no
    limit binds.
    """
    live = mask.bool()
    h = masked(at_least_fp32(entropies), live)
    mean = masked_mean(h, live, dim=1).unsqueeze(1)
    slots, width = segment_slots(segments, live)
    own = segment_means(h, slots, width).gather(1, slots)
    return (1 + alpha * (own - mean) / (mean + 1e-8)).clamp(*limits)


def espo_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logps: Tensor | None = None,
    *,
    entropies: Tensor,
    share: float | None,
    bins: int,
    alpha: float,
    limits: tuple[float, float],
    epsilon_low: float,
    epsilon_high: float,
    **more: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Entropy importance sampling, after the abstract of ESPO (https://arxiv.org/abs/2512.00499): a reconstruction.

        w_k = exp(mean of d over group k of tokens)     φ_k = 1 + α (H̄_k - H̄) / H̄
        L = (1/B) Σ_i (1/n_i) Σ_t -min(w A, clip(w, 1-φε_low, 1+φε_high) A)     w with the gradient of the token

    Args:
        logps: And the tensors after it as `policy_loss`.
        entropies: Nats, `[B, T]`.
        share: Group 1 is this share of most uncertain tokens, group 0 the rest; None takes `bins` instead.
        bins: Number of groups of equally many tokens, by entropy.
        alpha: α; 0 clips all groups alike.
        limits: Least and largest φ.
        epsilon_low: ε_low.
        epsilon_high: ε_high.
        **more: Further arguments of `policy_loss`.
    """
    live = mask.bool()
    groups = entropy_bins(entropies, live, bins) if share is None else most_uncertain(entropies, live, share)
    width = clip_width(entropies, live, groups, alpha=alpha, limits=limits)
    clip = Clip("pessimistic", epsilon_low * width, epsilon_high * width)
    loss, metrics = policy_loss(
        logps,
        old_logps,
        advantages,
        mask,
        ref_logps,
        ratio="segment",
        token_gradient=True,
        segments=groups,
        clip=clip,
        **more,
    )
    return loss, {**metrics, "policy/clip_width": masked(width, live).amax().detach()}
