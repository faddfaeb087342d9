"""Kahneman–Tversky optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import sigmoid

from seqtune.objectives.reduce import at_least_fp32, divided

if TYPE_CHECKING:
    from torch import Tensor


def kto_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    denominator: float | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Each completion against a reference point, not against its partner (https://arxiv.org/abs/2402.01306).

        r(y) = log π(y) - log π_ref(y)                       log-probs summed over the completion's tokens
        z = max(0, kl)                                       the same for every completion, without gradient
        L = -(1/2B) Σ [λ_D σ(β (r(chosen) - z)) + λ_U σ(β (z - r(rejected)))] + (λ_D + λ_U) / 2

    Args:
        chosen_logps: log π(chosen), nats, `[B]`: desirable completions.
        rejected_logps: log π(rejected), `[B]`: undesirable completions.
        ref_chosen_logps: log π_ref(chosen), `[B]`.
        ref_rejected_logps: log π_ref(rejected), `[B]`.
        kl: Mean of r over completions of other prompts, an estimate of KL(π ‖ π_ref); scalar.
        beta: β.
        desirable_weight: λ_D.
        undesirable_weight: λ_U.
        denominator: Pairs of the whole optimiser step, all micro-batches and ranks.

    Returns:
        The scalar loss, and `rewards/chosen`, `rewards/rejected` (means of β r), `rewards/margin` (their difference),
        `rewards/accuracy` (share of pairs whose chosen completion has the larger r), `policy/kl` (z).
    """
    chosen = at_least_fp32(chosen_logps) - at_least_fp32(ref_chosen_logps)  # r(chosen) [B]
    rejected = at_least_fp32(rejected_logps) - at_least_fp32(ref_rejected_logps)  # r(rejected) [B]
    z = at_least_fp32(kl).detach().clamp(min=0)
    losses = desirable_weight * (1 - sigmoid(beta * (chosen - z)))
    losses = losses + undesirable_weight * (1 - sigmoid(beta * (z - rejected)))
    metrics = {
        "rewards/chosen": beta * chosen.mean(),
        "rewards/rejected": beta * rejected.mean(),
        "rewards/margin": beta * (chosen - rejected).mean(),
        "rewards/accuracy": (chosen > rejected).to(chosen.dtype).mean(),
        "policy/kl": z,
    }
    return divided(losses.sum() / 2, denominator), {key: value.detach() for key, value in metrics.items()}
