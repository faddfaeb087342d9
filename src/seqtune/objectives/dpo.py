"""Direct Preference Optimization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import logsigmoid

from seqtune.objectives.reduce import at_least_fp32, divided

if TYPE_CHECKING:
    from torch import Tensor


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    denominator: float | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logistic loss on the difference of implicit rewards (https://arxiv.org/abs/2305.18290).

        r̂(y) = β (log π(y) - log π_ref(y))                  log-probs summed over the completion's tokens
        z = r̂(chosen) - r̂(rejected)
        L = -(1/B) Σ [(1-λ) log σ(z) + λ log σ(-z)]

    Args:
        chosen_logps: log π(chosen), nats, `[B]`.
        rejected_logps: log π(rejected), `[B]`.
        ref_chosen_logps: log π_ref(chosen), `[B]`.
        ref_rejected_logps: log π_ref(rejected), `[B]`.
        beta: β.
        label_smoothing: λ, probability that a label is flipped (conservative DPO, https://ericmitchell.ai/cdpo.pdf);
            0 is the paper's loss.
        denominator: Pairs of the whole optimiser step, all micro-batches and ranks.

    Returns:
        The scalar loss, and `rewards/chosen`, `rewards/rejected` (means of r̂), `rewards/margin` (mean of z),
        `rewards/accuracy` (share of pairs with z > 0).
    """
    chosen = beta * (at_least_fp32(chosen_logps) - at_least_fp32(ref_chosen_logps))  # r̂(chosen) [B]
    rejected = beta * (at_least_fp32(rejected_logps) - at_least_fp32(ref_rejected_logps))  # r̂(rejected) [B]
    z = chosen - rejected
    losses = -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)
    metrics = {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margin": z.mean(),
        "rewards/accuracy": (z > 0).to(z.dtype).mean(),
    }
    return divided(losses.sum(), denominator), {key: value.detach() for key, value in metrics.items()}
