"""Order the likelihoods of several completions of a prompt by their scores.

Shapes: `P` prompts, `K` completions of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from seqtune.objectives.reduce import at_least_fp32, divided, masked, masked_mean, masked_sum, sequence_mean

if TYPE_CHECKING:
    from torch import Tensor


def rank_hinge(logps: Tensor, scores: Tensor, margin: float) -> Tensor:
    """Mean over pairs with s_i > s_j of max(0, δ - lp_i + lp_j), `[P]`. The paper draws one pair; this is its mean."""
    pairs, gap = _pairs(logps, scores)
    return masked_mean((margin - gap).clamp(min=0).flatten(1), pairs.flatten(1), dim=1)


def margin_hinge(logps: Tensor, scores: Tensor, margin: float) -> Tensor:
    """Mean over pairs with s_i > s_j of max(0, δ (s_i - s_j) - lp_i + lp_j), `[P]`."""
    pairs, gap = _pairs(logps, scores)
    ahead = masked(scores.unsqueeze(2) - scores.unsqueeze(1), pairs)
    return masked_mean((margin * ahead - gap).clamp(min=0).flatten(1), pairs.flatten(1), dim=1)


def list_hinge(logps: Tensor, scores: Tensor, margin: float) -> Tensor:
    """Σ over pairs with s_i > s_j of max(0, δ (rank_j - rank_i) - lp_i + lp_j), `[P]`; equal scores share a rank."""
    pairs, gap = _pairs(logps, scores)
    ordered = scores.nan_to_num(nan=-torch.inf).sort(dim=1, descending=True)
    steps = torch.zeros_like(ordered.values)
    steps[:, 1:] = (ordered.values[:, 1:] < ordered.values[:, :-1]).to(steps.dtype)
    ranks = torch.zeros_like(steps).scatter(1, ordered.indices, steps.cumsum(1))
    apart = ranks.unsqueeze(1) - ranks.unsqueeze(2)  # rank_j - rank_i
    return masked_sum((margin * apart - gap).clamp(min=0).flatten(1), pairs.flatten(1), dim=1)


def expected_score(logps: Tensor, scores: Tensor, margin: float) -> Tensor:
    """-Σ_k s_k softmax_k(lp), `[P]`: what a draw among the completions scores; has no margin."""
    known = ~scores.isnan()
    share = logps.masked_fill(~known, -torch.inf).softmax(1)
    return -(masked(scores, known) * share).sum(1)


CALIBRATIONS = {"rank": rank_hinge, "margin": margin_hinge, "list": list_hinge, "reward": expected_score}
"""By the value of `objective.calibration`: `(logps [P, K], scores [P, K], margin) -> [P]`."""


def slic_loss(
    logps: Tensor,
    scores: Tensor,
    *,
    calibration: str = "rank",
    margin: float = 1.0,
    regularisation: float = 0.0,
    denominator: float | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sequence likelihood calibration (https://arxiv.org/abs/2210.00045, https://arxiv.org/abs/2305.10425).

        L = (1/P) Σ_p [calibration(lp_p, s_p) - λ lp_p(best)]

    Args:
        logps: lp = log π of whole completions, summed over tokens, `[P, K]`; the only input that carries a gradient.
        scores: s, the better the higher, `[P, K]`; NaN marks a place without a completion.
        calibration: In `CALIBRATIONS`.
        margin: δ, nats.
        regularisation: λ, weight of the negative log-likelihood of the first of the best completions.
        denominator: Prompts of the whole optimiser step.

    Returns:
        The scalar loss, and `rank/accuracy` (share of a prompt's pairs in the right order), `rank/tied` (share of
        prompts without a pair) and `rank/best_logp` (mean lp of the best).
    """
    lp, s = at_least_fp32(logps), scores.to(at_least_fp32(logps).dtype)
    best = s.nan_to_num(nan=-torch.inf).argmax(1, keepdim=True)
    lp_best = lp.gather(1, best).squeeze(1)  # lp(best) [P]
    total = (CALIBRATIONS[calibration](lp, s, margin) - regularisation * lp_best).sum()
    with torch.no_grad():
        pairs, gap = _pairs(lp, s)
        metrics = {
            "rank/accuracy": sequence_mean((gap > 0).to(lp.dtype).flatten(1), pairs.flatten(1)),
            "rank/tied": 1 - pairs.flatten(1).any(1).to(lp.dtype).mean(),
            "rank/best_logp": lp_best.mean(),
        }
    return divided(total, denominator), {key: value.detach() for key, value in metrics.items()}


def _pairs(logps: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs have s_i > s_j, and lp_i - lp_j of those, 0 elsewhere, both `[P, K, K]`; i is the second index."""
    pairs = scores.unsqueeze(2) > scores.unsqueeze(1)
    return pairs, masked(logps.unsqueeze(2) - logps.unsqueeze(1), pairs)
