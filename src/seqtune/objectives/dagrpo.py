"""DaGRPO: which completions of a group are distinct, and demonstrations as anchors.

Shapes: `B` completions, rows of a group contiguous; `T` tokens of the padded completion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from seqtune.objectives.policy import AGGREGATIONS, policy_loss
from seqtune.objectives.reduce import at_least_fp32, divided, masked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def edit_distances(completion_ids: Tensor, mask: Tensor, group_size: int) -> Tensor:
    """Levenshtein distance between the completions of a group over the longer one's length, `[P, G, G]` in [0, 1]."""
    rows = [row[keep].tolist() for row, keep in zip(completion_ids.cpu(), mask.bool().cpu(), strict=True)]
    found = torch.zeros(len(rows) // group_size, group_size, group_size)
    for p in range(len(found)):
        group = rows[p * group_size : (p + 1) * group_size]
        for i in range(group_size):
            for j in range(i):
                found[p, i, j] = found[p, j, i] = _levenshtein(group[i], group[j]) / max(
                    len(group[i]), len(group[j]), 1
                )
    return found


def _levenshtein(one: Sequence[int], other: Sequence[int]) -> int:
    """A column of the table at a time, as the bits of whole numbers (https://doi.org/10.1145/316542.316550)."""
    if not one:
        return len(other)
    places: dict[int, int] = {}
    for bit, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << bit
    every, last = (1 << len(one)) - 1, 1 << len(one) - 1
    up, down, found = every, 0, len(one)  # where an entry is 1 above or below the one before it in its column
    for token in other:
        same = places.get(token, 0)
        level = (((same & up) + up) ^ up) | same | down  # equal to the entry before it in the last column
        more, less = down | ~(level | up) & every, level & up  # against the entry beside it in the last column
        found += bool(more & last) - bool(less & last)
        more, less = (more << 1 | 1) & every, less << 1 & every
        up, down = less | ~(level | more) & every, level & more
    return found


def distinct(rewards: Tensor, distances: Tensor, *, success: float, tau: float) -> Tensor:
    """Completions far enough from every one of the group with the other outcome, `[B]` bool; DaGRPO's mask.

        keep_i = [min over j with the other outcome of distance_{i,j} >= τ]     outcome: r > success

    Args:
        rewards: `[B]`; NaN has no outcome, is kept and is no one's opposite.
        distances: `[P, G, G]`.
        success: A reward above it is a success.
        tau: τ.
    """
    groups = rewards.reshape(len(distances), -1)
    good, scored = groups > success, ~groups.isnan()
    opposite = (good.unsqueeze(2) != good.unsqueeze(1)) & scored.unsqueeze(2) & scored.unsqueeze(1)
    gap = torch.where(opposite, distances.to(groups.device), torch.inf).amin(2)
    return (gap >= tau).flatten()


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
        prefix_mask: 1 on the tokens of anchors, which are whole rows, `[B, T]`.
        gamma: γ of f.
        aggregation: As `policy_loss`.
        denominator: As `policy_loss`; counts both.
        **more: Further arguments of `policy_loss`.
    """
    a = advantages.unsqueeze(-1) if advantages.dim() == 1 else advantages
    expert = mask.bool() & prefix_mask.bool() & ~a.isnan() & logps.isfinite()
    given = masked(at_least_fp32(logps), expert)
    shaped = -shaped_probability(given, gamma) * masked(a.to(given.dtype), expert)
    loss, metrics = policy_loss(
        logps,
        old_logps,
        advantages,
        mask.bool() & ~prefix_mask.bool(),
        ref_logps,
        aggregation=aggregation,
        denominator=denominator,
        **more,
    )
    empty = metrics["policy/empty_rows"] - expert.any(-1).to(loss.dtype).mean().detach()  # an anchor is a whole row
    total = loss + divided(AGGREGATIONS[aggregation](shaped, expert), denominator)
    return total, {**metrics, "policy/empty_rows": empty}
