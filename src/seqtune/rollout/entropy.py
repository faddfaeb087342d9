"""Stop thinking when the entropy of a segment is low enough: Think Just Enough (https://arxiv.org/abs/2510.08146).

A segment is a fixed number of tokens here; the paper speaks of steps of reasoning. Entropies are in bits, of the
model's own distribution: neither the temperature nor `top_k` and `top_p` change them.

Shapes: `B` rows of a batch, `V` vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor


def top_entropy(logits: Tensor, top: int) -> Tensor:
    """Entropy of the `top` most probable tokens, renormalised, in bits: between 0 and log2(min(top, V)).

        p_v = softmax of the `top` largest logits;   h = -Σ_v p_v log2 p_v

    Args:
        logits: [B, V], or log-probs.
        top: Tokens that count.

    Returns:
        [B]
    """
    logps = logits.topk(min(top, logits.shape[-1]), dim=-1).values.log_softmax(-1)
    bits: Tensor = torch.special.entr(logps.exp()).sum(-1) / math.log(2)
    return bits


class Thresholds(NamedTuple):
    """Entropies below which completions were right, in bits."""

    mean: float
    """μ_c, the mean of right completions."""
    info: float
    """μ_c + σ_c ln(1 + |d|)."""
    bayes: float
    """Where the normal densities of right and wrong completions, weighed by their shares, cross between the means."""
    effect: float
    """Cohen's d = (μ_c - μ_w) / pooled standard deviation: below 0 where right completions have less entropy. NaN where
    there are too few to tell."""


def thresholds(right: Sequence[float] | NDArray[Any], wrong: Sequence[float] | NDArray[Any]) -> Thresholds:
    """Thresholds from the entropies of right and wrong completions.

    Where a rule has too little to go by (fewer than two right ones, no wrong one, no spread, no crossing between the
    means), it falls back to the mean. A single wrong completion has no spread of its own and takes that of the right.

    Raises:
        ValueError: There is no right completion.
    """
    if not len(right):
        raise ValueError("no completion is right, so there is no entropy to stop at")
    mean = float(np.mean(right))
    none = Thresholds(mean, mean, mean, math.nan)
    if len(right) < 2 or not len(wrong):
        return none
    sd = float(np.std(right, ddof=1))
    other, other_sd = float(np.mean(wrong)), float(np.std(wrong, ddof=1)) if len(wrong) > 1 else sd
    spread = len(right) + len(wrong) - 2
    pooled = math.sqrt(((len(right) - 1) * sd**2 + (len(wrong) - 1) * other_sd**2) / spread)
    if pooled == 0 or sd == 0:
        return none
    effect = (mean - other) / pooled
    share = len(right) / (len(right) + len(wrong))
    crossing = _crossing(mean, sd, share, other, other_sd, 1 - share) if other_sd > 0 else None
    return Thresholds(mean, mean + sd * math.log1p(abs(effect)), mean if crossing is None else crossing, effect)


def _crossing(mean: float, sd: float, share: float, other: float, other_sd: float, other_share: float) -> float | None:
    """The point between two means where the weighed normal densities are equal; None when there is none."""
    # log(share/sd) - (x - mean)²/2sd² = log(other_share/other_sd) - (x - other)²/2other_sd², as a x² + b x + c = 0
    mine, its = 1 / (2 * sd**2), 1 / (2 * other_sd**2)
    a, b = its - mine, 2 * (mine * mean - its * other)
    c = its * other**2 - mine * mean**2 + math.log(share / sd) - math.log(other_share / other_sd)
    roots = [root.real for root in np.roots([a, b, c]) if abs(root.imag) < 1e-12]
    return next((float(root) for root in roots if mean <= root <= other), None)


@dataclass(frozen=True)
class Rule:
    """When to stop, and what then.

    Args:
        threshold: A segment with at most this mean entropy, in bits, is the last one; None never stops.
        segment: Tokens of a segment; the first decision falls after the first.
        top: Most probable tokens the entropy is of; 20 in the paper.
        forced: Tokens put after the stop, at least one; sampling goes on behind them, and nothing stops it again.
    """

    threshold: float | None
    segment: int
    top: int
    forced: tuple[int, ...]


class Watch:
    """Entropies of the completions of one call of `generate`, and the stops among them.

    Args:
        rule: When to stop.
        rows: Completions of the call.
    """

    def __init__(self, rule: Rule, rows: int) -> None:
        self.rule = rule
        self.entropies: list[list[float]] = [[] for _ in range(rows)]
        """Bits at each token, forced ones included; after the end of a completion they mean nothing."""
        self.stops: list[int | None] = [None] * rows
        """Tokens a completion had when it was stopped."""

    def __call__(self, logits: Tensor, tokens: Tensor, step: int, rows: Sequence[int]) -> Tensor:
        """Look at a step of a batch.

        Args:
            logits: [B, V] of the token at `step`.
            tokens: [B] what was chosen.
            step: Tokens each row has before it.
            rows: [B] number of each row in the call.

        Returns:
            [B] the tokens, forced ones in the place of those that were chosen.
        """
        rule, forced = self.rule, {}
        bits = top_entropy(logits, rule.top).tolist()
        for place, (row, value) in enumerate(zip(rows, bits, strict=True)):
            seen = self.entropies[row]
            stop = self.stops[row]
            if rule.threshold is not None and stop is None and step and step % rule.segment == 0:
                mean = sum(seen[-rule.segment :]) / rule.segment
                self.stops[row] = stop = step if mean <= rule.threshold else None
            if stop is not None and step - stop < len(rule.forced):
                forced[place] = rule.forced[step - stop]
            seen.append(value)
        if not forced:
            return tokens
        places = torch.tensor(list(forced), device=tokens.device)
        return tokens.index_copy(0, places, torch.tensor(list(forced.values()), device=tokens.device))

    def first_segment(self, row: int, length: int) -> float:
        """Mean entropy of the first segment of a completion of `length` tokens, or of all of it if it is shorter."""
        return float(np.mean(self.entropies[row][: min(self.rule.segment, length)]))

    def stopped(self, row: int, length: int) -> bool:
        """Whether a completion of `length` tokens was stopped before it ended by itself."""
        stop = self.stops[row]
        return stop is not None and stop < length
