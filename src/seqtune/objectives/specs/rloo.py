"""What a recipe can say about `rloo`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.policy import Policy


class Rloo(Policy):
    """REINFORCE leave-one-out: a completion against the mean of the others, as one action, the KL in the reward."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i -min(w_i A_i, clip(w_i, 1-ε_low, 1+ε_high) A_i)     w_i = exp(Σ_t log (π/π_old)(y_{i,t}))\n"
        "A_i = R_i - mean of the others' R     R_i = r_i - beta Σ_t log (π_old/π_ref)(y_{i,t})"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2402.14740"

    name: Literal["rloo"] = "rloo"
    advantage: Literal["leave_one_out"] = "leave_one_out"
    """r - mean of the others of the group."""
    ratio: Literal["sequence_sum"] = "sequence_sum"
    """Unit of the importance ratio: the product of all tokens' ratios."""
    beta: float = Field(0.05, ge=0)
    """β: weight of the KL in the reward; 0 keeps no reference. 0.05 is TRL's."""
    kl: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL per token."""
    kl_in: Literal["loss", "reward"] = "reward"
    """Where β KL goes: taken off the reward before advantages are computed."""
