"""From the rewards of a whole rollout to its advantages: shaping, estimator, credit and what is left out, composed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from seqtune.objectives.advantages import ADVANTAGES, columns, kl_shaped, reinforce_pp, reinforce_pp_baseline
from seqtune.objectives.credit import only_uncertain, tree
from seqtune.objectives.dapo import overlong
from seqtune.objectives.policy import KLS
from seqtune.objectives.reduce import extent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def assign(
    rewards: Tensor,
    *,
    mask: Tensor | None = None,
    completion_ids: Tensor | None = None,
    ended: Tensor | None = None,
    limit: int | None = None,
    old_logps: Tensor | None = None,
    ref_logps: Tensor | None = None,
    entropies: Tensor | None = None,
    reward_columns: Tensor | None = None,
    estimator: str,
    group_size: int,
    gamma: float = 1.0,
    reward_weights: Sequence[float] = (),
    overlong_share: float = 0.0,
    beta: float = 0.0,
    kl: str = "k1",
    tree_weight: float | None = None,
    tree_root: bool = True,
    entropy_drop: float = 0.0,
    drop_truncated: bool = False,
) -> Tensor:
    """Advantages of a rollout, all processes together: groups are whole and in contiguous rows.

    Args:
        rewards: `[B]`, NaN where there is none: A = 0, and no part of any statistic.
        mask: `[B, T]`, the sampled tokens. This tensor and those after it are needed by what the fields below ask for.
        completion_ids: `[B, T]`.
        ended: `[B]`, whether a completion ended by itself.
        limit: Most tokens a completion may have.
        old_logps: log π_old, `[B, T]`.
        ref_logps: log π_ref, `[B, T]`.
        entropies: Of the policy that sampled, nats, `[B, T]`.
        reward_columns: `[B, F]`, one column a reward.
        estimator: In `ADVANTAGES`, or `reinforce_pp` or `reinforce_pp_baseline`.
        group_size: G.
        gamma: Discount a token of `reinforce_pp`.
        reward_weights: w_f of `columns`.
        overlong_share: Part of `limit` over which the soft overlong penalty falls to -1; 0 has none.
        beta: Weight of the KL in the reward; 0 leaves it out.
        kl: Its estimator.
        tree_weight: Weight of the prefix tree's differences; None gives no credit by tree.
        tree_root: Whether the first token counts as a branch.
        entropy_drop: Share of the least uncertain tokens whose advantage becomes 0.
        drop_truncated: Completions that did not end are left out of the loss, not of their group's statistics.

    Returns:
        `[B]`, or `[B, T]` where tokens differ; NaN for what is left out of the loss.

    Raises:
        ValueError: A tensor that is needed is missing, or rewards are no whole groups.
    """
    if overlong_share:
        lengths, most = extent(_given(mask=mask)).tolist(), int(_given(limit=limit))
        cache = round(overlong_share * most)
        rewards = rewards + rewards.new_tensor([overlong(int(n), limit=most, cache=cache) for n in lengths])
    if estimator == "reinforce_pp":
        a = reinforce_pp(
            rewards,
            _given(mask=mask),
            old_logps=old_logps,
            ref_logps=ref_logps,
            beta=beta,
            kl=KLS[kl],
            gamma=gamma,
        )
    else:
        if beta:
            old, ref = _given(old_logps=old_logps), _given(ref_logps=ref_logps)
            rewards = kl_shaped(rewards, _given(mask=mask), old, ref, beta=beta, kl=KLS[kl])
        if estimator == "reinforce_pp_baseline":
            a = reinforce_pp_baseline(rewards, _given(mask=mask), group_size=group_size)
        elif estimator == "columns":
            known = torch.where(rewards.isnan().unsqueeze(1), torch.nan, _given(reward_columns=reward_columns))
            a = columns(known, group_size, weights=reward_weights)
        else:
            a = ADVANTAGES[estimator](rewards, group_size)
    if tree_weight is not None:
        ids = _given(completion_ids=completion_ids)
        scored = torch.where(rewards.isnan(), torch.nan, a)
        a = tree(scored, ids, _given(mask=mask), group_size, weight=tree_weight, root=tree_root)
    if entropy_drop:
        a = only_uncertain(a, _given(entropies=entropies), _given(mask=mask), entropy_drop)
    if drop_truncated:
        whole = _given(ended=ended).bool()
        a = torch.where(whole if a.dim() == 1 else whole.unsqueeze(1), a, torch.nan)
    return a


def _given(**one: Any) -> Any:
    """The one argument, which must not be None."""
    ((name, value),) = one.items()
    if value is None:
        raise ValueError(f"these advantages need {name}")
    return value
