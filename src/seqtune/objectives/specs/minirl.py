"""What a recipe can say about `minirl`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.policy import Policy


class MiniRl(Policy):
    """MiniRL: REINFORCE with group mean, gated by staleness and corrected for the engine that sampled."""

    formula: ClassVar[str] = (
        "L = -(1/B) Σ_i Σ_t M c ρ A_i     ρ = π/π_old     c = min(π_old/μ, correction_high)     A_i = r_i - mean(r)\n"
        "M: 0 where A > 0 and ρ > 1+ε_high, or A < 0 and ρ < 1-ε_low; 1 elsewhere     μ: the engine that sampled"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2512.01374"

    name: Literal["minirl"] = "minirl"
    advantage: Literal["group", "centered"] = "centered"
    """`centered`: r - mean of the group; `group` divides by the standard deviation."""
    clip: Literal["gate"] = "gate"
    """The gate looks at the staleness π/π_old only."""
    epsilon_high: float = Field(0.27, gt=0)
    """ε_high: a ratio above 1 + ε_high gets no gradient when its advantage is positive."""
    correction: Literal["none", "truncate", "mask"] = "truncate"
    """Weight of π_old over the engine that sampled: none; `truncate`d at `correction_high`; or 0 outside the range."""
    aggregation: Literal["token_sum"] = "token_sum"
    """Summed over tokens, mean over completions: no length is divided out."""
