"""What a recipe can say about `grpo`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.policy import Policy


class Grpo(Policy):
    """Group Relative Policy Optimization: token ratios, advantages normalised within the group."""

    formula: ClassVar[str] = (
        "L = aggregation_{i,t}[-min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A) + beta KL]     ρ_{i,t} = (π/π_old)(y_{i,t})\n"
        "sequence_mean: (1/B) Σ_i (1/n_i) Σ_t     A_i: advantage     KL: of π from π_ref, estimator kl"
    )

    name: Literal["grpo"] = "grpo"
    ratio: Literal["token"] = "token"
    """Unit of the importance ratio: each token."""
    beta: float = Field(0.04, ge=0)
    """β: weight of the KL to the reference model; 0 keeps no reference. 0.04 is the paper's; TRL takes 0."""
