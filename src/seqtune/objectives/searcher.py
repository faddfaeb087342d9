"""R1-Searcher++: the fewest retrievals earn more, answers are memorised.

Shapes: `B` completions, rows of a group contiguous; `T` tokens of the padded completion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from seqtune.objectives.policy import AGGREGATIONS, policy_loss
from seqtune.objectives.reduce import at_least_fp32, divided, masked, masked_mean, masked_sum

if TYPE_CHECKING:
    from torch import Tensor


def fewest_calls(correct: Tensor, calls: Tensor, group_size: int, *, weight: float = 2.0, limit: float = 2.0) -> Tensor:
    """Bonus of R1-Searcher++ for answering with the fewest retrievals (https://arxiv.org/abs/2505.17005), `[B]`.

    Among the correct completions of a group, those with the least calls get min(weight × var(calls), limit), var over
    the correct ones (ddof 0); all others 0.

    Args:
        correct: `[B]` bool.
        calls: Retrievals of each completion, `[B]`.
        group_size: G.
        weight: Factor of the variance.
        limit: Largest bonus.
    """
    right = correct.bool().reshape(-1, group_size)
    c = calls.to(torch.float32).reshape(-1, group_size)
    mean = masked_mean(c, right, dim=1).unsqueeze(1)
    variance = masked_mean((c - mean).square(), right, dim=1).unsqueeze(1)
    least = torch.where(right, c, torch.inf).amin(1, keepdim=True)
    bonus = (weight * variance).clamp(max=limit)
    return masked(bonus.expand_as(c), right & (c == least)).flatten()


def memorising_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logps: Tensor | None = None,
    *,
    memory_mask: Tensor,
    mu: float,
    aggregation: str,
    denominator: float | Tensor,
    **more: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`policy_loss` plus the negative log-likelihood of answers rewritten as own knowledge, R1-Searcher++
    (https://arxiv.org/abs/2505.17005).

        L = L_policy + μ aggregate(-log π) over the rewritten answers

    Args:
        logps: And the tensors after it as `policy_loss`.
        memory_mask: 1 on the tokens of rewritten answers, which take no part in the policy term, `[B, T]`.
        mu: μ.
        aggregation: As `policy_loss`.
        denominator: As `policy_loss`; counts both.
        **more: Further arguments of `policy_loss`.
    """
    memory = mask.bool() & memory_mask.bool()
    loss, metrics = policy_loss(
        logps,
        old_logps,
        advantages,
        mask.bool() & ~memory,
        ref_logps,
        aggregation=aggregation,
        denominator=denominator,
        **more,
    )
    known = memory & logps.isfinite()
    nll = masked(-at_least_fp32(logps), known)
    total = loss + mu * divided(AGGREGATIONS[aggregation](nll, known), denominator)
    # Rows of nothing but memory are no completions of the rollout, whose means the metrics are.
    alone = (memory.any(-1) & ~(mask.bool() & ~memory).any(-1)).sum()
    rows = (len(memory) - alone).clamp(min=1)
    empty = ((metrics["policy/empty_rows"] * len(memory) - alone) / rows).clamp(min=0)
    recalled = (masked_sum(nll, memory) / rows).detach()
    return total, {**metrics, "policy/empty_rows": empty, "policy/memory_nll": recalled}
