"""Order the likelihoods of several completions of a prompt by their scores.

Shapes: `P` prompts, `K` completions of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqtune.objectives.reduce import at_least_fp32, divided, masked, masked_mean

if TYPE_CHECKING:
    from torch import Tensor


def slic_rank_loss(
    logps: Tensor, scores: Tensor, *, margin: float = 1.0, denominator: float | Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Hinge on every pair of completions with different scores, the rank loss of SLiC (https://arxiv.org/abs/2210.00045).

        L = (1/P) Σ_p mean over pairs with score_i > score_j of max(0, margin - log π(y_i) + log π(y_j))

    Args:
        logps: log π of whole completions, summed over tokens, `[P, K]`; the only input that carries a gradient.
        scores: The better the higher, `[P, K]`; NaN takes part in no pair.
        margin: Nats by which the better completion should be the more probable one.
        denominator: Prompts of the whole optimiser step.

    Returns:
        The scalar loss, and `rank/accuracy` (share of pairs in the right order) and `rank/tied` (share of prompts
        without a pair, which add 0). The paper draws one pair; this is the mean over the draw.
    """
    lp = at_least_fp32(logps)
    pairs = scores.unsqueeze(2) > scores.unsqueeze(1)  # [P, K, K], better first
    gap = lp.unsqueeze(2) - lp.unsqueeze(1)
    hinge = (margin - gap).clamp(min=0)
    loss = masked_mean(masked(hinge, pairs).flatten(1), pairs.flatten(1), dim=1).sum()
    metrics = {
        "rank/accuracy": masked_mean((gap > 0).to(lp.dtype), pairs),
        "rank/tied": 1 - pairs.flatten(1).any(1).to(lp.dtype).mean(),
    }
    return divided(loss, denominator), {key: value.detach() for key, value in metrics.items()}
