"""Policy losses that are more than a choice of parts: each prepares tensors and hands them to `policy_loss`.

Shapes and symbols as in `seqtune.objectives.policy`. `entropies` are those of the policy that sampled: taken again from
the policy that learns they would move what they decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from seqtune.objectives.policy import AGGREGATIONS, Clip, policy_loss, segment_mean, segment_means, segment_slots
from seqtune.objectives.reduce import at_least_fp32, divided, masked, masked_mean, masked_sum

if TYPE_CHECKING:
    from torch import Tensor

PLAN, ANSWER = 0, 1
"""Numbers of the spans of `ts_grpo_loss`."""


# ESPO: segments by entropy


def most_uncertain(entropies: Tensor, mask: Tensor, share: float) -> Tensor:
    """1 on the ceil(share × n_i) tokens of largest entropy of each row, the earlier of equals first; 0 on the rest."""
    live = mask.bool()
    number = (share * live.sum(1, keepdim=True)).ceil().clamp(min=1)
    return (_rank(-entropies, live) < number).long()


def entropy_bins(entropies: Tensor, mask: Tensor, count: int) -> Tensor:
    """Number of the bin of each token, 0..count-1 from low to high entropy, equally many tokens of its row in each."""
    live = mask.bool()
    n = live.sum(1, keepdim=True).clamp(min=1)
    return torch.where(live, _rank(entropies, live) * min(count, live.shape[1]) // n, 0).clamp(max=count - 1)


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


# TS-GRPO: a span by tokens, a span as one


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


# Rank-GRPO: every item of a list is a unit


def rank_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logps: Tensor | None = None,
    *,
    segments: Tensor,
    ranks: int,
    aggregation: str,
    **more: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One ratio for each item of a list, Rank-GRPO (https://arxiv.org/abs/2510.20150).

        w_{i,k} = exp(mean of d over item k)     L = (1/B) Σ_i (1/K) Σ_k -min(w A_{i,k}, clip(w) A_{i,k}) + β KL

    Args:
        logps: And the tensors after it as `policy_loss`; advantages `[B, T]`.
        segments: Item of each token, `[B, T]`; all from K on share one ratio.
        ranks: K.
        aggregation: `rank`: as above, every item weighs the same; or one of `policy_loss`, over tokens.
        **more: Further arguments of `policy_loss`.
    """
    items = segments.clamp(max=ranks)

    def by_rank(loss: Tensor, live: Tensor) -> Tensor:
        return segment_mean(loss, live, items, ranks)

    return policy_loss(
        logps,
        old_logps,
        advantages,
        mask,
        ref_logps,
        ratio="segment",
        segments=items,
        aggregation=by_rank if aggregation == "rank" else aggregation,
        **more,
    )


# Demonstrations inside rollouts


def prefix_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logps: Tensor | None = None,
    *,
    prefix_mask: Tensor,
    **more: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`policy_loss` in which demonstration tokens have ratio 1, Prefix-RFT (https://arxiv.org/abs/2507.01679).

    No policy of ours sampled them: π_old is the policy itself there, so they are never clipped and their gradient is
    -A ∇log π.

    Args:
        logps: And the tensors after it as `policy_loss`.
        prefix_mask: 1 on demonstration tokens, `[B, T]`.
        **more: Further arguments of `policy_loss`.
    """
    old = torch.where(prefix_mask.bool(), logps.detach().to(old_logps.dtype), old_logps)
    return policy_loss(logps, old, advantages, mask, ref_logps, **more)


def shaped_probability(logps: Tensor, gamma: float) -> Tensor:
    """f(π) = π / (π + γ): LUFFY's weight of an expert's tokens, with most gradient where π is small but not lost."""
    return torch.sigmoid(logps - torch.log(torch.as_tensor(gamma, dtype=logps.dtype, device=logps.device)))


def anchored_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logps: Tensor | None = None,
    *,
    prefix_mask: Tensor,
    gamma: float,
    aggregation: str,
    denominator: float | Tensor,
    **more: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`policy_loss` on sampled tokens and -f(π) A on an expert's, the anchors of DaGRPO (https://arxiv.org/abs/2512.06337).

    Args:
        logps: And the tensors after it as `policy_loss`.
        prefix_mask: 1 on the tokens of anchors, `[B, T]`.
        gamma: γ of f.
        aggregation: As `policy_loss`.
        denominator: As `policy_loss`; counts both.
        **more: Further arguments of `policy_loss`.
    """
    a = advantages.unsqueeze(-1) if advantages.dim() == 1 else advantages
    expert = mask.bool() & prefix_mask.bool() & ~a.isnan()
    given = masked(at_least_fp32(logps), expert)
    shaped = -shaped_probability(given, gamma) * masked(a.to(given.dtype), expert)
    loss, metrics = policy_loss(
        logps,
        old_logps,
        advantages,
        mask.bool() & ~expert,
        ref_logps,
        aggregation=aggregation,
        denominator=denominator,
        **more,
    )
    return loss + divided(AGGREGATIONS[aggregation](shaped, expert), denominator), metrics


# Tools


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
    nll = masked(-at_least_fp32(logps), memory)
    total = loss + mu * divided(AGGREGATIONS[aggregation](nll, memory), denominator)
    # Rows of nothing but memory are no completions of the rollout, whose means the metrics are.
    alone = (memory.any(-1) & ~(mask.bool() & ~memory).any(-1)).sum()
    rows = (len(memory) - alone).clamp(min=1)
    empty = ((metrics["policy/empty_rows"] * len(memory) - alone) / rows).clamp(min=0)
    recalled = (masked_sum(nll, memory) / rows).detach()
    return total, {**metrics, "policy/empty_rows": empty, "policy/memory_nll": recalled}
