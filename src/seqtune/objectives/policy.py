"""Objectives over groups of sampled completions: one small function per choice, composed by `policy_loss`.

    log ratio of the unit → ratio → clip → × weights → + β KL → aggregation over an explicit global denominator

Shapes: `B` completions, `T` tokens of the padded completion. Symbols: `d = log π - log π_old` per token, `m` the mask,
`n_i = Σ_t m_{i,t}`, `w` the importance ratio of a unit, `A` the advantage, `μ` the engine that sampled. Losses are
minimised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from seqtune.objectives.reduce import at_least_fp32, divided, masked, masked_mean, masked_sum, sequence_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    Bound = float | Tensor
    """One number, or one a token."""

LOG_RATIO_BOUND = 20.0
"""Log ratios are clamped to ±20 before `exp`: e^20 is finite in every precision used and far outside any clip range."""


# log w, by unit


def token_log_ratio(d: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
    """log ρ_{i,t} = d_{i,t}: every token is a unit. `[B, T]`."""
    return masked(d, mask)


def sequence_log_ratio(d: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
    """log s_i = (1/n_i) Σ_t m d: the completion is the unit, normalised by its length. `[B, 1]`; 0 for an empty row."""
    return masked_mean(d, mask, dim=-1).unsqueeze(-1)


def summed_log_ratio(d: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
    """log (π/π_old)(y_i) = Σ_t m d: the completion is the unit, its length not divided out. `[B, 1]`."""
    return masked_sum(d, mask, dim=-1).unsqueeze(-1)


def segment_log_ratio(d: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
    """log w_{i,k} = mean of d over the tokens of segment k, at each of them. `[B, T]`; 0 outside the mask.

    Args:
        d: `[B, T]`.
        mask: `[B, T]`.
        segments: Number of the segment of each token, `[B, T]` integers; need be unique within its row only.

    Raises:
        ValueError: No `segments`.
    """
    if segments is None:
        raise ValueError("a ratio by segment needs segments")
    slots, width = segment_slots(segments, mask)
    return masked(segment_means(masked(d, mask), slots, width).gather(1, slots), mask)


def segment_slots(segments: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    """Segment numbers made dense: `[B, T]` columns 1..K by order of number, 0 for what the mask hides; and K + 1."""
    live = mask.bool()
    ids, dense = torch.unique(segments, return_inverse=True)
    return torch.where(live, dense + 1, torch.zeros_like(dense)), len(ids) + 1


def segment_means(x: Tensor, slots: Tensor, width: int) -> Tensor:
    """Mean of `x` over the tokens of each slot of each row, `[B, width]`; 0 for an empty slot."""
    total = x.new_zeros(len(x), width).scatter_add(1, slots, x)
    count = x.new_zeros(len(x), width).scatter_add(1, slots, torch.ones_like(x))
    return total / count.clamp(min=1)


LOG_RATIOS: Mapping[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "token": token_log_ratio,
    "segment": segment_log_ratio,
    "sequence": sequence_log_ratio,
    "sequence_sum": summed_log_ratio,
}
MEANS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "token": masked_mean,
    "segment": masked_mean,
    "sequence": sequence_mean,
    "sequence_sum": sequence_mean,
}
"""How a metric is averaged over units `[B, T]` -> scalar, by unit; segments count by their tokens."""


def importance_ratio(log_ratio: Tensor) -> Tensor:
    """w = exp(clamp(log w, -20, 20)); no gradient outside the clamp."""
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def through_tokens(log_ratio: Tensor, d: Tensor) -> Tensor:
    """log w with the value of the unit and the gradient of the token: sg(log w) + d - sg(d). `[B, T]`.

    exp of it is sg(w) exp(log π - sg(log π)), the token form of GSPO (https://arxiv.org/abs/2507.18071, eq. 13): equal
    to the shared form where A is the same for all tokens, and meaningful where it is not.
    """
    return log_ratio.detach() + d - d.detach()


# The surrogate. `w` and `A` are [B, T] or [B, 1] and broadcast; the result is a loss.


def pessimistic_clip(
    w: Tensor, advantages: Tensor, *, epsilon_low: Bound, epsilon_high: Bound, bound: float | None = None
) -> Tensor:
    """-min(w A, clip(w, 1-ε_low, 1+ε_high) A), the PPO surrogate (https://arxiv.org/abs/1707.06347).

    The gradient is 0 exactly where `clipped_low` or `clipped_high` says so. Shapes broadcast.

    Args:
        w: Ratio.
        advantages: A.
        epsilon_low: ε_low.
        epsilon_high: ε_high.
        bound: δ > 1 + ε_high: min(w, δ) stands for w in the unclipped branch, which bounds the loss where A < 0 and w
            is huge. TRL's `delta`; the same as the dual clip (https://arxiv.org/abs/1912.09729) with c = δ.
    """
    unclipped = w if bound is None else w.clamp(max=bound)
    return -torch.minimum(unclipped * advantages, clip(w, epsilon_low, epsilon_high) * advantages)


def dual_clip(w: Tensor, advantages: Tensor, *, epsilon_low: Bound, epsilon_high: Bound, c: float) -> Tensor:
    """-max(min(w A, clip(w) A), c A) where A < 0, the PPO surrogate elsewhere (https://arxiv.org/abs/1912.09729)."""
    loss = pessimistic_clip(w, advantages, epsilon_low=epsilon_low, epsilon_high=epsilon_high)
    return torch.where(advantages < 0, torch.minimum(loss, -c * advantages), loss)


def clip(w: Tensor, epsilon_low: Bound, epsilon_high: Bound) -> Tensor:
    """w between 1 - ε_low and 1 + ε_high; either may be one a token."""
    low, high = (torch.as_tensor(x, dtype=w.dtype, device=w.device) for x in (1 - epsilon_low, 1 + epsilon_high))
    return w.clamp(low, high)  # at a bound the whole gradient passes, unlike through minimum and maximum


def capped_weight(w: Tensor, advantages: Tensor, logps: Tensor, *, epsilon_high: Bound) -> Tensor:
    """-sg(min(w, 1+ε_high)) A log π, CISPO (https://arxiv.org/abs/2506.13585): no token loses its gradient."""
    high = torch.as_tensor(1 + epsilon_high, dtype=w.dtype, device=w.device)
    return -torch.minimum(w, high).detach() * advantages * logps


def gated(w: Tensor, advantages: Tensor, *, epsilon_low: Bound, epsilon_high: Bound) -> Tensor:
    """-M w A with M = 0 where the pessimistic clip has no gradient: its gradient, another value."""
    stopped = clipped_low(w, advantages, epsilon_low) | clipped_high(w, advantages, epsilon_high)
    return masked(-w * advantages, ~stopped)


def soft_gate(w: Tensor, advantages: Tensor, *, tau_positive: float, tau_negative: float) -> Tensor:
    """-(4/τ) σ(τ (w - 1)) A, SAPO (https://arxiv.org/abs/2511.20347): the gradient fades away from w = 1, where it is
    that of -w A. τ is `tau_positive` where A > 0, `tau_negative` elsewhere."""
    tau = torch.where(advantages > 0, tau_positive, tau_negative)
    return -4 / tau * torch.sigmoid(tau * (w - 1)) * advantages


def clipped_low(w: Tensor, advantages: Tensor, epsilon_low: Bound) -> Tensor:
    """Where the lower bound stops the gradient: A < 0 and w < 1 - ε_low."""
    return (advantages < 0) & (w < 1 - epsilon_low)


def clipped_high(w: Tensor, advantages: Tensor, epsilon_high: Bound) -> Tensor:
    """Where the upper bound stops the gradient: A > 0 and w > 1 + ε_high."""
    return (advantages > 0) & (w > 1 + epsilon_high)


class Clip(NamedTuple):
    """A clip rule and its numbers.

    Args:
        rule: `pessimistic`, `cispo`, `gate` or `soft`.
        epsilon_low: ε_low; `cispo` and `soft` have none.
        epsilon_high: ε_high; `soft` has none.
        bound: δ of `pessimistic`.
        tau_positive: τ of `soft` where A > 0.
        tau_negative: τ of `soft` elsewhere.
    """

    rule: str
    epsilon_low: Bound
    epsilon_high: Bound
    bound: float | None = None
    tau_positive: float = 1.0
    tau_negative: float = 1.05

    def loss(self, w: Tensor, advantages: Tensor, logps: Tensor) -> Tensor:
        """The surrogate, `[B, T]` or `[B, 1]`."""
        ranges = {"epsilon_low": self.epsilon_low, "epsilon_high": self.epsilon_high}
        match self.rule:
            case "pessimistic":
                return pessimistic_clip(w, advantages, **ranges, bound=self.bound)
            case "cispo":
                return capped_weight(w, advantages, logps, epsilon_high=self.epsilon_high)
            case "gate":
                return gated(w, advantages, **ranges)
            case "soft":
                return soft_gate(w, advantages, tau_positive=self.tau_positive, tau_negative=self.tau_negative)
        raise KeyError(self.rule)

    def acts(self, w: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Where the lower and where the upper bound acts."""
        never = torch.zeros((), dtype=torch.bool, device=w.device).expand_as(w * advantages)
        match self.rule:
            case "soft":
                return never, never
            case "cispo":
                return never, (w > 1 + self.epsilon_high).expand_as(never)
        low = clipped_low(w, advantages, self.epsilon_low)
        if self.bound is not None:
            low = low | ((advantages < 0) & (w > self.bound))
        return low, clipped_high(w, advantages, self.epsilon_high)


# Weights between the engine that sampled and the one that trains; none carries a gradient


class Correction(NamedTuple):
    """Importance weight c = π_old/μ of the training engine against the sampling engine, cut to a range.

    Args:
        over: Unit: `token`; `sequence_mean` or `sequence_sum`, one weight a completion.
        rule: `truncate` to at most `high` (TIS), or `mask`: 0 outside [low, high] (IcePop).
        low: Least weight of `mask`.
        high: Largest weight.
    """

    over: str
    rule: str
    low: float
    high: float

    def weight(self, gap: Tensor, mask: Tensor) -> Tensor:
        """c of `gap` = log π_old - log μ, `[B, T]` or `[B, 1]`; 1 for a token whose log μ is not known."""
        known = mask.bool() & gap.isfinite()
        unit = {"token": token_log_ratio, "sequence_mean": sequence_log_ratio, "sequence_sum": summed_log_ratio}
        c = importance_ratio(unit[self.over](masked(gap, known), known))
        if self.rule == "truncate":
            return c.clamp(max=self.high)
        return masked(c, (c >= self.low) & (c <= self.high))

    def total(self, gap: Tensor, mask: Tensor) -> Tensor:
        """Sum of c over its units, and how many there are, `[2]`: c has mean 1 when it is divided by their ratio."""
        live = mask.bool()
        units = live if self.over == "token" else live.any(-1, keepdim=True)
        c = self.weight(gap, live)
        return torch.stack([masked_sum(c, units), units.sum().to(c.dtype)])


class Rejection(NamedTuple):
    """Leaves out completions on which the two engines disagree.

    Args:
        kl: Estimator `k1`, `k2` or `k3` of log π_old - log μ.
        over: How a completion's tokens are put together: `sum`, `mean` or `max`.
        threshold: Largest value kept.
    """

    kl: str
    over: str
    threshold: float

    def rejects(self, gap: Tensor, mask: Tensor) -> Tensor:
        """Completions left out, `[B]`; tokens whose log μ is not known say nothing."""
        known = mask.bool() & gap.isfinite()
        values = KLS[self.kl](masked(gap, known))
        match self.over:
            case "sum":
                score = masked_sum(values, known, dim=-1)
            case "mean":
                score = masked_mean(values, known, dim=-1)
            case "max":
                score = torch.where(known, values, -torch.inf).amax(-1)
            case _:
                raise KeyError(self.over)
        return score > self.threshold


def strayed(logps: Tensor, sampler_logps: Tensor, advantages: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """Where A < 0 in a completion that the policy has moved away from: mean of log μ - log π above the threshold.

    The off-policy sequence mask of DeepSeek-V3.2 (https://arxiv.org/abs/2512.02556), as in TRL; `[B, 1]` or `[B, T]`.
    """
    gap = (sampler_logps - logps).detach()
    mean = masked_mean(gap, mask.bool() & gap.isfinite(), dim=-1).unsqueeze(-1)
    return (advantages < 0) & (mean > threshold)


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


def aggregate_constant(loss: Tensor, mask: Tensor) -> Tensor:
    """Σ_i Σ_t m L: divided by completions times the most tokens one may have, so that no length weighs less."""
    return masked_sum(loss, mask)


def micro_batch_mean(loss: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens at hand (TRL's `bnpo`): depends on how a step is cut, so no objective here uses it."""
    return masked_mean(loss, mask)


def segment_mean(loss: Tensor, mask: Tensor, segments: Tensor, count: int) -> Tensor:
    """Σ_i (1/K) Σ_k mean of L over segment k: every one of the K = `count` segments weighs the same, present or not.

    Tokens of segments outside 0..K-1 add nothing.
    """
    inside = mask.bool() & (segments >= 0) & (segments < count)
    slots = torch.where(inside, segments + 1, torch.zeros_like(segments))
    return segment_means(masked(loss, inside), slots, count + 1)[:, 1:].sum() / count


AGGREGATIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sequence_mean": aggregate_sequence_mean,
    "token_mean": aggregate_token_mean,
    "token_sum": aggregate_token_sum,
    "constant": aggregate_constant,
}


def policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logps: Tensor | None = None,
    *,
    sampler_logps: Tensor | None = None,
    segments: Tensor | None = None,
    correction_scale: Tensor | None = None,
    ratio: str,
    clip: Clip,
    aggregation: str | Callable[[Tensor, Tensor], Tensor],
    token_gradient: bool = False,
    correction: Correction | None = None,
    rejection: Rejection | None = None,
    off_policy_threshold: float | None = None,
    beta: float = 0.0,
    kl: str = "k3",
    kl_corrected: bool = False,
    denominator: float | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped importance-weighted policy gradient over sampled completions, plus a KL to a reference.

        L = aggregate( c clip-loss(w, A) + β KL )        clip-loss: -min(w A, clip(w, 1-ε_low, 1+ε_high) A), …

    GRPO (https://arxiv.org/abs/2402.03300) is `ratio="token"`; GSPO (https://arxiv.org/abs/2507.18071) is
    `ratio="sequence"` with `aggregation="sequence_mean"`.

    Args:
        logps: log π, `[B, T]`, at the sampling temperature; the only input that carries a gradient.
        old_logps: log π_old of the policy that sampled, in the training engine, `[B, T]`.
        advantages: A, one a completion `[B]` or one a token `[B, T]`. NaN leaves a completion or token out of the loss,
            as the mask does.
        mask: m, `[B, T]`: 1 on the sampled tokens up to and including the first end-of-sequence token.
        ref_logps: log π_ref, `[B, T]`; needed if `beta` > 0.
        sampler_logps: log μ of the engine that sampled, `[B, T]`, NaN where it is not known; None means μ = π_old.
        segments: Segment of each token, `[B, T]`; needed by `ratio="segment"`.
        correction_scale: Mean of c over the whole rollout, the same in every row, `[B]`; c is divided by it.
        ratio: Unit of the importance ratio w, in `LOG_RATIOS`.
        clip: The surrogate.
        aggregation: In `AGGREGATIONS`, or a function `(loss[B, T], mask[B, T]) -> scalar`.
        token_gradient: Take the value of w from its unit and its gradient from the token alone (`through_tokens`).
        correction: Weight c of the surrogate for what the two engines differ by.
        rejection: Which completions are left out because the two engines differ.
        off_policy_threshold: Threshold of `strayed`, nats a token; None leaves nothing out.
        beta: β; 0 leaves the KL out of the loss (it is still measured if `ref_logps` is given).
        kl: Estimator `k1`, `k2` or `k3`.
        kl_corrected: Weigh the KL of a token by w. With `ratio="token"` its mean is the KL of π whatever sampled.
        denominator: Count over the whole optimiser step, all micro-batches and ranks: completions for `sequence_mean`
            and `token_sum`, tokens of the mask for `token_mean`, completions times the most tokens one may have for
            `constant`. The losses of micro-batches add up to the step's.

    Returns:
        The scalar loss and the metrics, means over this micro-batch. A row without a token contributes 0 and is counted
        in `policy/empty_rows`. A token of the mask whose log ratio or KL is not finite is left out and counted in
        `policy/nonfinite_tokens`.

    Raises:
        ValueError: `beta` > 0 without `ref_logps`, or a ratio by segment without `segments`.
        KeyError: An unknown `ratio`, `aggregation` or `kl`.
    """
    if beta > 0 and ref_logps is None:
        raise ValueError("beta > 0 needs ref_logps")
    logps = at_least_fp32(logps)
    a = advantages.to(logps.dtype)
    a = a.unsqueeze(-1) if a.dim() == 1 else a  # [B, 1] or [B, T]
    asked = mask.bool() & ~a.isnan()  # [B, T]
    d = logps - old_logps.to(logps.dtype)  # [B, T]
    q = None if ref_logps is None else logps - ref_logps.to(logps.dtype)  # [B, T]
    finite = d.isfinite() if q is None else d.isfinite() & q.isfinite()
    live = asked & finite
    d = masked(d, live)
    a = masked(a, live if a.shape == live.shape else live.any(-1, keepdim=True))

    log_w = LOG_RATIOS[ratio](d, live, segments)  # [B, T] or [B, 1]
    w = importance_ratio(through_tokens(log_w, d) if token_gradient else log_w)
    loss = clip.loss(w, a, masked(logps, live)).expand_as(d)
    mu = old_logps if sampler_logps is None else sampler_logps
    gap = masked(old_logps.to(d.dtype) - mu.to(d.dtype), live)  # log π_old - log μ, [B, T]
    weight = torch.ones_like(d)
    if correction is not None:
        weight = weight * correction.weight(gap, live)
        if correction_scale is not None:
            weight = weight / correction_scale.to(weight.dtype).clamp(min=1e-8).unsqueeze(-1)
    if rejection is not None:
        weight = masked(weight, ~rejection.rejects(gap, live).unsqueeze(-1))
    if off_policy_threshold is not None:
        weight = masked(weight, ~strayed(logps, mu.to(d.dtype), a, live, off_policy_threshold))
    loss = weight * loss
    divergence = None if q is None else KLS[kl](masked(q, live))  # [B, T]
    if divergence is not None and kl_corrected:
        divergence = w * divergence
    if beta > 0 and divergence is not None:
        loss = loss + beta * divergence
    aggregate = AGGREGATIONS[aggregation] if isinstance(aggregation, str) else aggregation
    total = divided(aggregate(loss, live), denominator)

    with torch.no_grad():
        mean = MEANS[ratio]

        def share(x: Tensor) -> Tensor:
            return mean(x.to(d.dtype).expand_as(d), live)

        low, high = clip.acts(w, a)
        metrics = {
            "policy/ratio_mean": share(w),
            "policy/clip_low": share(low),
            "policy/clip_high": share(high),
            "policy/approx_kl": masked_mean(k3(-d), live),  # samples come from π_old, so this is KL(π_old || π)
            "policy/empty_rows": 1 - live.any(-1).to(d.dtype).mean(),
            "policy/nonfinite_tokens": masked_mean((~finite).to(d.dtype), asked),
        }
        if divergence is not None:
            metrics["policy/kl"] = masked_mean(divergence, live)
        if correction is not None:
            metrics["policy/correction_mean"] = masked_mean(correction.weight(gap, live).expand_as(d), live)
        if rejection is not None or off_policy_threshold is not None:
            metrics["policy/left_out"] = masked_mean((weight == 0).to(d.dtype), live)
    return total, {key: value.detach() for key, value in metrics.items()}
