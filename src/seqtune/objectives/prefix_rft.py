"""Prefix-RFT: how much of a demonstration is given, and how it is learnt.

Shapes: `B` completions, rows of a group contiguous; `T` tokens of the padded completion.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from seqtune.objectives.policy import policy_loss
from seqtune.objectives.reduce import at_least_fp32, masked

if TYPE_CHECKING:
    from torch import Tensor


def prefix_share(step: int, *, first: float, last: float, steps: int, schedule: str = "cosine") -> float:
    """Least share of a demonstration that is given, at a step: from `first` down to `last` after `steps`.

    Args:
        step: Optimiser step, from 0.
        first: Share at step 0.
        last: Share at `steps` and after.
        steps: Length of the descent.
        schedule: `constant` (`first` throughout), `linear` or `cosine`.
    """
    if schedule == "constant":
        return first
    done = min(step, steps) / max(steps, 1)
    left = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return last + left * (first - last)


def prefix_length(share: float, length: int, *, least: int = 1) -> int:
    """Tokens of a demonstration of `length` that are given: at least `least`, and at least one is left to generate.

    0 where the demonstration is shorter than two tokens: there is no prefix to give.
    """
    return 0 if length < 2 else min(max(int(share * length), least), length - 1)


def uncertain_prefix(advantages: Tensor, entropies: Tensor, mask: Tensor, prefix_mask: Tensor, keep: float) -> Tensor:
    """Advantages `[B, T]` with 0 on all but the most uncertain `keep` share of demonstration tokens.

    Prefix-RFT (https://arxiv.org/abs/2507.01679); over the whole batch, not the micro-batch, so that the split changes
    nothing. Tokens tied at the threshold all stay. NaN, which leaves out of the loss, stays NaN.
    """
    a = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
    prefix = mask.bool() & prefix_mask.bool()
    number = int(prefix.sum())
    kept = int(keep * number + 0.5)
    if kept:
        floor = entropies[prefix].topk(kept).values[-1]
        dropped = prefix & (entropies < floor)
    else:
        dropped = prefix
    return masked(a.expand(prefix.shape), mask.bool() & (~dropped | a.isnan()))


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
    own = at_least_fp32(logps).detach()
    old = torch.where(prefix_mask.bool(), own, old_logps.to(own.dtype))
    return policy_loss(logps, old, advantages, mask, ref_logps, **more)
