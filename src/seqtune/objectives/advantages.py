"""Advantages of completions sampled for the same prompt. Rows of a group are contiguous: `B = prompts * group_size`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from seqtune.objectives.reduce import at_least_fp32, last_tokens, masked, masked_mean, masked_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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


def batch_std(rewards: Tensor, group_size: int, *, epsilon: float = 1e-4) -> Tensor:
    """Reward minus the mean of its group, over the standard deviation of the whole batch (TRL's `scale_rewards=batch`).

        A_i = (r_i - mean(r of the group)) / (std(r of the batch) + epsilon)          std with ddof 1

    Args and errors as `group`; a group with nothing to compare gets zeros.
    """
    scored = ~torch.isnan(rewards)
    r = at_least_fp32(rewards)
    mean = masked_mean(r, scored)
    variance = masked_sum((r - mean).square(), scored) / (scored.sum() - 1).clamp(min=1)
    return centered(rewards, group_size) / (variance.sqrt() + epsilon)


def leave_one_out(rewards: Tensor, group_size: int) -> Tensor:
    """Reward minus the mean of the others of its group, RLOO (https://arxiv.org/abs/2402.14740).

        A_i = r_i - mean_{j≠i} r_j = G/(G-1) (r_i - mean(r of the group))          G: scored completions of the group

    Args and errors as `centered`.
    """
    difference, scored, usable = _within_groups(rewards, group_size)
    count = scored.sum(1, keepdim=True)  # [P, 1]
    return masked(difference * (count / (count - 1).clamp(min=1)), usable).flatten()


def columns(rewards: Tensor, group_size: int, *, weights: Sequence[float] = (), epsilon: float = 1e-4) -> Tensor:
    """Several rewards, each normalised in its group before they are added (GDPO, https://arxiv.org/abs/2601.05242).

        A = (a - mean(a)) / (std(a) + epsilon) over the batch     a_i = Σ_f w_f group(r_{·,f})_i

    Adding the rewards first would let the one with the largest spread decide.

    Args:
        rewards: `[B, F]`, one column a reward; NaN as in `centered`. A completion with NaN in every column is left out
            of the batch's statistics and gets A = 0.
        group_size: G.
        weights: w_f; empty weighs all alike with 1.
        epsilon: Added to the standard deviations.

    Raises:
        ValueError: As `centered`, or another number of weights than columns.
    """
    if weights and len(weights) != rewards.shape[1]:
        raise ValueError(f"{len(weights)} weights for {rewards.shape[1]} rewards")
    parts = by_column(rewards, group_size, epsilon=epsilon)  # [B, F]
    summed = (parts * parts.new_tensor(weights or [1.0] * parts.shape[1])).sum(1)
    scored = ~rewards.isnan().all(1)
    known = summed[scored]
    if len(known) < 2 or known.amax() - known.amin() < EQUAL:
        return torch.zeros_like(summed)
    return masked((summed - known.mean()) / (known.std() + epsilon), scored)


def by_column(rewards: Tensor, group_size: int, *, epsilon: float = 1e-4) -> Tensor:
    """`group` of every column of `[B, K]`: completions are compared rank by rank, segment by segment."""
    return torch.stack([group(column, group_size, epsilon=epsilon) for column in rewards.unbind(1)], dim=1)


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """(v - mean) / sqrt(var + 1e-8) over the tokens of the mask, var with ddof 1; `[B, T]`, 0 outside.

    Long completions have more tokens and so weigh more. Values that are all equal (to 1e-8) become 0.
    """
    live = mask.bool()
    v = at_least_fp32(values)
    chosen = v[live]
    if len(chosen) < 2 or chosen.amax() - chosen.amin() < EQUAL:
        return torch.zeros_like(v)
    return masked((v - chosen.mean()) * (chosen.var() + 1e-8).rsqrt(), live)


def returns(token_rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Return to go R_{i,t} = Σ_{u>=t} γ^{u-t} r_{i,u} over the tokens of the mask, `[B, T]`; 0 outside.

    Args:
        token_rewards: `[B, T]`.
        mask: `[B, T]`; tokens that it leaves out take no time.
        gamma: γ, the discount of one token.
    """
    live = mask.bool()
    r = masked(at_least_fp32(token_rewards), live)
    found, ahead = torch.zeros_like(r), r.new_zeros(len(r))
    for t in reversed(range(r.shape[1])):
        ahead = torch.where(live[:, t], r[:, t] + gamma * ahead, ahead)
        found[:, t] = masked(ahead, live[:, t])
    return found


def reinforce_pp(
    rewards: Tensor,
    mask: Tensor,
    *,
    old_logps: Tensor | None = None,
    ref_logps: Tensor | None = None,
    beta: float = 0.0,
    kl: Callable[[Tensor], Tensor] | None = None,
    gamma: float = 1.0,
) -> Tensor:
    """Token advantages of REINFORCE++ (https://arxiv.org/abs/2501.03262): returns whitened over the batch's tokens.

        A = whitened(R)     R_{i,t} = Σ_{u>=t} γ^{u-t} (r_i 1[u last] - β KL_{i,u})

    No group is needed: what a completion is compared with is the whole batch.

    Args:
        rewards: `[B]`; a completion with NaN is left out of the statistics and gets A = 0.
        mask: `[B, T]`.
        old_logps: log π_old, `[B, T]`; with `ref_logps`, if `beta` > 0.
        ref_logps: log π_ref, `[B, T]`.
        beta: β.
        kl: KL estimator of log π_old - log π_ref per token.
        gamma: γ.

    Returns:
        `[B, T]`, 0 outside the mask. A token whose KL is not finite pays none.

    Raises:
        ValueError: An infinite reward, or β > 0 without the log-probs or the estimator.
    """
    if torch.isinf(rewards).any():
        raise ValueError("an infinite reward has no advantage")
    r = at_least_fp32(rewards)
    live = mask.bool() & ~torch.isnan(r).unsqueeze(1)  # [B, T]
    tokens = masked(r.unsqueeze(1), last_tokens(live))
    if beta > 0:
        if old_logps is None or ref_logps is None or kl is None:
            raise ValueError("beta > 0 needs old_logps, ref_logps and kl")
        tokens = tokens - beta * kl(_log_ratio(old_logps, ref_logps, live).to(r.dtype))
    return whitened(returns(tokens, live, gamma=gamma), live)


def reinforce_pp_baseline(rewards: Tensor, mask: Tensor, *, group_size: int) -> Tensor:
    """REINFORCE++ with the group's mean as baseline: r - mean on every token, whitened over the batch's tokens.

    Args and result as `reinforce_pp`.
    """
    live = mask.bool() & ~torch.isnan(rewards).unsqueeze(1)
    return whitened(centered(rewards, group_size).unsqueeze(1).expand(live.shape), live)


def kl_shaped(
    rewards: Tensor, mask: Tensor, old_logps: Tensor, ref_logps: Tensor, *, beta: float, kl: Callable[[Tensor], Tensor]
) -> Tensor:
    """Reward less its KL to the reference: r_i - β Σ_t KL(log π_old - log π_ref), `[B]`.

    A token whose log ratio is not finite pays nothing.
    """
    return rewards - beta * kl(_log_ratio(old_logps, ref_logps, mask.bool())).sum(1).to(at_least_fp32(rewards).dtype)


def _log_ratio(logps: Tensor, ref_logps: Tensor, mask: Tensor) -> Tensor:
    """log π - log π_ref; 0, of which every KL estimator makes 0, outside the mask and where it is not finite."""
    q = at_least_fp32(logps) - at_least_fp32(ref_logps)
    return masked(q, mask & q.isfinite())


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


ADVANTAGES: dict[str, Callable[..., Tensor]] = {
    "group": group,
    "centered": centered,
    "batch_std": batch_std,
    "leave_one_out": leave_one_out,
    "columns": columns,
}
"""Of rewards and `group_size`, by the name a recipe uses."""
