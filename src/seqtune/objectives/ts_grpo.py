"""TS-GRPO: the plan by tokens, the answer as one.

Shapes and symbols as in `seqtune.objectives.policy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from seqtune.objectives.policy import Clip, policy_loss
from seqtune.objectives.reduce import masked_mean

if TYPE_CHECKING:
    from torch import Tensor


PLAN, ANSWER = 0, 1
"""Numbers of the spans of `ts_grpo_loss`."""


def ts_grpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logps: Tensor | None = None,
    *,
    segments: Tensor,
    plan_epsilon_low: float,
    plan_epsilon_high: float,
    epsilon_low: float,
    epsilon_high: float,
    plan_weight: float,
    answer_weight: float,
    denominator: float | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Token ratios in the plan, one ratio for the answer, after Thinkquel (https://arxiv.org/abs/2510.00186): a
    reconstruction.

        L = (1/B) Σ_i [λ_P (1/|P_i|) Σ_{t∈P_i} PC(ρ_{i,t}, A^P_i) + λ_S PC(s_i, A^S_i)]     s_i: over the answer S_i

    PC is the pessimistic clip, with the plan's ε and the answer's.

    Args:
        logps: And the tensors after it as `policy_loss`; advantages `[B, T]` hold A^P on the plan, A^S on the answer.
        segments: 0 on the plan, 1 on the answer, -1 on neither, `[B, T]`; what is neither adds nothing.
        plan_epsilon_low: ε_low of the plan.
        plan_epsilon_high: ε_high of the plan.
        epsilon_low: ε_low of the answer.
        epsilon_high: ε_high of the answer.
        plan_weight: λ_P.
        answer_weight: λ_S.
        denominator: Completions of the whole step.
    """
    plan, answer = segments == PLAN, segments == ANSWER
    place = torch.arange(segments.shape[1], device=segments.device)
    units = torch.where(answer, segments.shape[1], place)  # the answer is one unit, every other token one
    clip = Clip(
        "pessimistic",
        torch.where(plan, plan_epsilon_low, epsilon_low),
        torch.where(plan, plan_epsilon_high, epsilon_high),
    )

    def by_span(loss: Tensor, live: Tensor) -> Tensor:
        means = (masked_mean(loss, live & plan, dim=1), masked_mean(loss, live & answer, dim=1))
        return (plan_weight * means[0] + answer_weight * means[1]).sum()

    return policy_loss(
        logps,
        old_logps,
        advantages,
        mask,
        ref_logps,
        ratio="segment",
        segments=units,
        clip=clip,
        aggregation=by_span,
        denominator=denominator,
    )
