"""Advantages of completions sampled for the same prompt. Rows of a group are contiguous: `B = prompts * group_size`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from seqtune.objectives.reduce import at_least_fp32, masked, masked_mean, masked_sum

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

EQUAL = 1e-8
"""Rewards of a group closer together than this are equal: nothing is to be learnt, and noise is not amplified."""


def centered(rewards: Tensor, group_size: int) -> Tensor:
    """Reward minus the mean of its group, as in Dr. GRPO (https://arxiv.org/abs/2503.20783).

        A_i = r_i - mean(r of the group)

    Args:
        rewards: `[B]`; NaN marks a completion without a score. It is left out of the statistics and gets A = 0.
        group_size: G, completions a prompt, at least 2.

    Returns:
        `[B]` float32 (float64 for float64 rewards). A group whose scored rewards are all equal (range below 1e-8) or
        that has fewer than two of them gets zeros.

    Raises:
        ValueError: `group_size` below 2, `B` not a multiple of it, or an infinite reward.
    """
    difference, _, usable = _within_groups(rewards, group_size)
    return masked(difference, usable).flatten()


def group(rewards: Tensor, group_size: int, *, epsilon: float = 1e-4) -> Tensor:
    """Reward normalised within its group, as in GRPO (https://arxiv.org/abs/2402.03300).

        A_i = (r_i - mean(r of the group)) / (std(r of the group) + epsilon)          std with ddof 1

    Args:
        rewards: `[B]`; NaN marks a completion without a score, as in `centered`.
        group_size: G, completions a prompt, at least 2.
        epsilon: Added to the standard deviation, in units of reward.

    Returns:
        `[B]`, with the zeros of `centered`.

    Raises:
        ValueError: As `centered`.
    """
    difference, scored, usable = _within_groups(rewards, group_size)
    freedom = (scored.sum(1, keepdim=True) - 1).clamp(min=1)  # [P, 1]
    variance = masked_sum(difference.square(), scored, dim=1).unsqueeze(1) / freedom
    return masked(difference / (variance.sqrt() + epsilon), usable).flatten()


def _within_groups(rewards: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """`(r - mean, scored, usable)`, each `[P, G]`: usable: scored, in a group that has something to compare."""
    if group_size < 2:
        raise ValueError(f"group_size is {group_size}; an advantage relative to its group needs at least 2 completions")
    if rewards.dim() != 1 or rewards.numel() % group_size:
        raise ValueError(f"rewards of shape {tuple(rewards.shape)} are not whole groups of {group_size}")
    r = at_least_fp32(rewards).reshape(-1, group_size)  # [P, G]
    if torch.isinf(r).any():
        raise ValueError("an infinite reward has no advantage")
    scored = ~torch.isnan(r)
    inf = torch.full_like(r, torch.inf)
    spread = torch.where(scored, r, -inf).amax(1) - torch.where(scored, r, inf).amin(1)  # -inf without a score
    comparable = spread >= EQUAL  # so at least two are scored
    return r - masked_mean(r, scored, dim=1).unsqueeze(1), scored, scored & comparable.unsqueeze(1)


ADVANTAGES: dict[str, Callable[..., Tensor]] = {"group": group, "centered": centered}
"""By the name a recipe uses."""
