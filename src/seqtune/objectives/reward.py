"""Bradley–Terry reward modelling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import logsigmoid

from seqtune.objectives.reduce import at_least_fp32, divided

if TYPE_CHECKING:
    from torch import Tensor


def reward_loss(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    *,
    center_coefficient: float = 0.0,
    denominator: float | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the preferences under the Bradley–Terry model (https://arxiv.org/abs/2203.02155).

        L = -(1/B) Σ log σ(r⁺ - r⁻) + c (1/B) Σ (r⁺ + r⁻)²

    Args:
        chosen_rewards: r⁺, the scalar the model gives the chosen completion, `[B]`.
        rejected_rewards: r⁻, `[B]`.
        center_coefficient: c; the second term fixes the origin of the rewards, which the first leaves free
            (https://arxiv.org/abs/2312.09244).
        denominator: Pairs of the whole optimiser step, all micro-batches and ranks.

    Returns:
        The scalar loss, and `rewards/chosen`, `rewards/rejected`, `rewards/margin` (means), `rewards/accuracy` (share
        of pairs with r⁺ > r⁻).
    """
    chosen, rejected = at_least_fp32(chosen_rewards), at_least_fp32(rejected_rewards)
    margin = chosen - rejected
    losses = -logsigmoid(margin) + center_coefficient * (chosen + rejected).square()
    metrics = {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margin": margin.mean(),
        "rewards/accuracy": (margin > 0).to(margin.dtype).mean(),
    }
    return divided(losses.sum(), denominator), {key: value.detach() for key, value in metrics.items()}
