"""The loss: a pure function of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqtune.objectives.reduce import at_least_fp32

if TYPE_CHECKING:
    from torch import Tensor


def ipo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    tau: float,
    denominator: float | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared distance of the preference margin from a target (https://arxiv.org/abs/2310.12036).

        h = log (π/π_ref)(chosen) - log (π/π_ref)(rejected)
        L = (1/B) Σ (h - 1/(2τ))²

    Args:
        chosen_logps: log π(chosen), summed over its tokens, nats, `[B]`; the other three alike.
        tau: τ.
        denominator: Pairs of the whole optimiser step.
    """
    chosen = at_least_fp32(chosen_logps) - at_least_fp32(ref_chosen_logps)
    rejected = at_least_fp32(rejected_logps) - at_least_fp32(ref_rejected_logps)
    h = chosen - rejected
    loss = ((h - 1 / (2 * tau)) ** 2).sum() / denominator
    return loss, {"rewards/margin": h.detach().mean()}
