"""Rank-GRPO: each item of a list is one action, with an advantage and a ratio of its own.

Shapes: `B` completions, rows of a group contiguous; `T` tokens of the padded completion; `K` ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from seqtune.objectives.advantages import by_column
from seqtune.objectives.credit import spread
from seqtune.objectives.policy import policy_loss, segment_mean
from seqtune.objectives.reduce import at_least_fp32, last_tokens, masked

if TYPE_CHECKING:
    from torch import Tensor


def discounted_ranks(relevance: Tensor) -> Tensor:
    """r_{i,k} = Σ_{j>=k} rel_{i,j} / log2(j + 2), `[B, K]`: the list's DCG without what earlier ranks earned."""
    discount = 1 / torch.log2(torch.arange(relevance.shape[1], device=relevance.device, dtype=relevance.dtype) + 2)
    return (relevance * discount).flip(1).cumsum(1).flip(1)


def rank_advantages(
    rewards: Tensor,
    *,
    rank_rewards: Tensor,
    segments: Tensor,
    mask: Tensor,
    ended: Tensor,
    group_size: int,
    ranks: int,
    discounted: bool,
    overflow: float,
    ending: float,
) -> Tensor:
    """Advantages of Rank-GRPO (https://arxiv.org/abs/2510.20150), `[B, T]`: each rank compared within its group.

    The end-of-sequence token and tokens beyond the last rank have only the shaping of `list_shape`.

    Args:
        rewards: `[B]`; a completion with NaN is left out of the statistics and gets A = 0.
        rank_rewards: What each item earns, `[B, K]`.
        segments: Item of each token, `[B, T]`.
        mask: `[B, T]`.
        ended: Whether the last token of the mask ends the sequence, `[B]`.
        group_size: G.
        ranks: K.
        discounted: Compare the DCG of a rank and those below it instead of what the item itself earns.
        overflow: As `list_shape`.
        ending: As `list_shape`.

    Raises:
        ValueError: Rewards of another number of ranks.
    """
    if rank_rewards.shape[1] != ranks:
        raise ValueError(f"rewards of {rank_rewards.shape[1]} ranks, not {ranks}")
    r = at_least_fp32(rank_rewards)
    r = discounted_ranks(r) if discounted else r
    unscored = rewards.isnan().unsqueeze(1)
    r = torch.where(unscored, torch.nan, r)
    end = last_tokens(mask) & ended.bool().unsqueeze(1)
    a = spread(by_column(r, group_size), segments, mask.bool() & ~end)
    shape = list_shape(segments, mask, ended, ranks, overflow=overflow, ending=ending).to(a)
    return a + masked(shape, ~unscored)


def list_shape(
    segments: Tensor, mask: Tensor, ended: Tensor, count: int, *, overflow: float = 0.1, ending: float = 0.1
) -> Tensor:
    """What Rank-GRPO adds to the advantages so that lists have `count` items, `[B, T]` (https://arxiv.org/abs/2510.20150).

    -overflow on tokens beyond the last item; on the end-of-sequence token +ending after a whole list without overflow,
    -ending after too short a one. A completion that did not end gets nothing for its end.

    Args:
        segments: Item of each token, `[B, T]`.
        mask: `[B, T]`.
        ended: Whether the last token of the mask ends the sequence, `[B]`.
        count: K.
        overflow: Taken off the tokens of items K, K+1, …
        ending: Added or taken off at the end.
    """
    live = mask.bool()
    last = last_tokens(live) & ended.bool().unsqueeze(1)
    beyond = live & (segments >= count)
    items = torch.where(live, segments, -1).amax(1, keepdim=True) + 1
    shape = -overflow * beyond.to(torch.float32)
    whole = (items >= count) & ~beyond.any(1, keepdim=True)
    at_end = torch.where(whole, ending, torch.where(items < count, -ending, 0.0))
    return shape + torch.where(last, at_end, 0.0)


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
