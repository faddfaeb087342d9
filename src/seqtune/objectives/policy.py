"""Objectives over groups of sampled completions: one small function per choice, composed by `policy_loss`.

    log ratio of the unit → ratio → pessimistic clip → + β KL → aggregation over an explicit global denominator

Shapes: `B` completions, `T` tokens of the padded completion. Symbols: `d = log π - log π_old` per token, `m` the mask,
`n_i = Σ_t m_{i,t}`, `w` the importance ratio of a unit, `A` the advantage. Losses are minimised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from seqtune.objectives.reduce import at_least_fp32, divided, masked, masked_mean, masked_sum, sequence_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

LOG_RATIO_BOUND = 20.0
"""Log ratios are clamped to ±20 before `exp`: e^20 is finite in every precision used and far outside any clip range."""


# log w, by unit


def token_log_ratio(d: Tensor, mask: Tensor) -> Tensor:
    """log ρ_{i,t} = d_{i,t}: every token is a unit. `[B, T]`."""
    return masked(d, mask)


def sequence_log_ratio(d: Tensor, mask: Tensor) -> Tensor:
    """log s_i = (1/n_i) Σ_t m d: the completion is the unit, normalised by its length. `[B, 1]`; 0 for an empty row."""
    return masked_mean(d, mask, dim=-1).unsqueeze(-1)


LOG_RATIOS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "token": token_log_ratio,
    "sequence": sequence_log_ratio,
}
MEANS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"token": masked_mean, "sequence": sequence_mean}
"""How a metric is averaged over units `[B, T]` -> scalar, by unit."""


def importance_ratio(log_ratio: Tensor) -> Tensor:
    """w = exp(clamp(log w, -20, 20)); no gradient outside the clamp."""
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


# The surrogate


def pessimistic_clip(w: Tensor, advantages: Tensor, *, epsilon_low: float, epsilon_high: float) -> Tensor:
    """-min(w A, clip(w, 1-ε_low, 1+ε_high) A), the PPO surrogate (https://arxiv.org/abs/1707.06347).

    The gradient is 0 exactly where `clipped_low` or `clipped_high` says so. Shapes broadcast.
    """
    return -torch.minimum(w * advantages, w.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages)


def clipped_low(w: Tensor, advantages: Tensor, epsilon_low: float) -> Tensor:
    """Where the lower bound stops the gradient: A < 0 and w < 1 - ε_low."""
    return (advantages < 0) & (w < 1 - epsilon_low)


def clipped_high(w: Tensor, advantages: Tensor, epsilon_high: float) -> Tensor:
    """Where the upper bound stops the gradient: A > 0 and w > 1 + ε_high."""
    return (advantages > 0) & (w > 1 + epsilon_high)


# KL(π || π_ref) per token, q = log π - log π_ref (http://joschu.net/blog/kl-approx.html)


def k1(q: Tensor) -> Tensor:
    """q: unbiased value; its gradient has mean 0, so as a loss it teaches nothing on average."""
    return q


def k2(q: Tensor) -> Tensor:
    """q²/2: low variance, biased value; its gradient q ∇log π is that of the reverse KL on policy."""
    return q.square() / 2


def k3(q: Tensor) -> Tensor:
    """exp(-q) + q - 1: unbiased, low variance, never negative. -q is clamped to ±20 before `exp`."""
    return (-q).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp() + q - 1


KLS: Mapping[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


# Aggregation: per-token losses -> the part of the step's loss that these rows contribute


def aggregate_sequence_mean(loss: Tensor, mask: Tensor) -> Tensor:
    """Σ_i (1/n_i) Σ_t m L: divided by sequences, every completion weighs the same."""
    return masked_mean(loss, mask, dim=-1).sum()


def aggregate_token_mean(loss: Tensor, mask: Tensor) -> Tensor:
    """Σ_i Σ_t m L: divided by tokens, every token weighs the same."""
    return masked_sum(loss, mask)


def aggregate_token_sum(loss: Tensor, mask: Tensor) -> Tensor:
    """Σ_i Σ_t m L: divided by sequences, a completion weighs as much as it has tokens."""
    return masked_sum(loss, mask)


AGGREGATIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sequence_mean": aggregate_sequence_mean,
    "token_mean": aggregate_token_mean,
    "token_sum": aggregate_token_sum,
}


def policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logps: Tensor | None = None,
    *,
    ratio: str,
    epsilon_low: float,
    epsilon_high: float,
    aggregation: str,
    beta: float = 0.0,
    kl: str = "k3",
    denominator: float | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped importance-weighted policy gradient over sampled completions, plus a KL to a reference.

        L = aggregate( -min(w A, clip(w, 1-ε_low, 1+ε_high) A) + β KL )

    GRPO (https://arxiv.org/abs/2402.03300) is `ratio="token"`; GSPO (https://arxiv.org/abs/2507.18071) is
    `ratio="sequence"` with `aggregation="sequence_mean"`.

    Args:
        logps: log π, `[B, T]`, at the sampling temperature; the only input that carries a gradient.
        old_logps: log π_old of the policy that sampled, `[B, T]`.
        advantages: A, one a completion `[B]` or one a token `[B, T]`.
        mask: m, `[B, T]`: 1 on the sampled tokens up to and including the first end-of-sequence token.
        ref_logps: log π_ref, `[B, T]`; needed if `beta` > 0.
        ratio: Unit of the importance ratio w: `token` (ρ_{i,t}) or `sequence` (s_i).
        epsilon_low: ε_low.
        epsilon_high: ε_high.
        aggregation: `sequence_mean`, `token_mean` or `token_sum`.
        beta: β; 0 leaves the KL out of the loss (it is still measured if `ref_logps` is given).
        kl: Estimator `k1`, `k2` or `k3`.
        denominator: Count over the whole optimiser step, all micro-batches and ranks: completions for `sequence_mean`
            and `token_sum`, tokens of the mask for `token_mean`. The losses of micro-batches add up to the step's.

    Returns:
        The scalar loss and the metrics, means over this micro-batch. A row without a token contributes 0 and is counted
        in `policy/empty_rows`. A token of the mask whose log ratio or KL is not finite is left out and counted in
        `policy/nonfinite_tokens`.

    Raises:
        ValueError: `beta` > 0 without `ref_logps`.
        KeyError: An unknown `ratio`, `aggregation` or `kl`.
    """
    if beta > 0 and ref_logps is None:
        raise ValueError("beta > 0 needs ref_logps")
    asked = mask.bool()  # [B, T]
    logps = at_least_fp32(logps)
    d = logps - old_logps.to(logps.dtype)  # [B, T]
    q = None if ref_logps is None else logps - ref_logps.to(logps.dtype)  # [B, T]
    finite = d.isfinite() if q is None else d.isfinite() & q.isfinite()
    live = asked & finite
    d = masked(d, live)
    a = advantages.to(logps.dtype)
    a = a.unsqueeze(-1) if a.dim() == 1 else masked(a, live)  # [B, 1] or [B, T]

    w = importance_ratio(LOG_RATIOS[ratio](d, live))  # [B, T] or [B, 1]
    loss = pessimistic_clip(w, a, epsilon_low=epsilon_low, epsilon_high=epsilon_high).expand_as(d)
    divergence = None if q is None else KLS[kl](masked(q, live))  # [B, T]
    if beta > 0 and divergence is not None:
        loss = loss + beta * divergence
    total = divided(AGGREGATIONS[aggregation](loss, live), denominator)

    with torch.no_grad():
        mean = MEANS[ratio]

        def share(x: Tensor) -> Tensor:
            return mean(x.to(d.dtype).expand_as(d), live)

        metrics = {
            "policy/ratio_mean": share(w),
            "policy/clip_low": share(clipped_low(w, a, epsilon_low)),
            "policy/clip_high": share(clipped_high(w, a, epsilon_high)),
            "policy/approx_kl": masked_mean(k3(-d), live),  # samples come from π_old, so this is KL(π_old || π)
            "policy/empty_rows": 1 - live.any(-1).to(d.dtype).mean(),
            "policy/nonfinite_tokens": masked_mean((~finite).to(d.dtype), asked),
        }
        if divergence is not None:
            metrics["policy/kl"] = masked_mean(divergence, live)
    return total, {key: value.detach() for key, value in metrics.items()}
