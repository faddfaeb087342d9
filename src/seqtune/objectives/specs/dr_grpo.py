"""What a recipe can say about `dr_grpo`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.grpo import Grpo


class DrGrpo(Grpo):
    """Dr. GRPO: no division by the standard deviation, none by the length of a completion."""

    formula: ClassVar[str] = (
        "L = (1/(B L_max)) Σ_i Σ_t [-min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A) + beta KL]     A_i = r_i - mean(r)\n"
        "L_max: rollout.max_new_tokens"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2503.20783"

    name: Literal["dr_grpo"] = "dr_grpo"  # type: ignore[assignment]  # a name is one method's
    advantage: Literal["centered"] = "centered"
    """r - mean of the group."""
    aggregation: Literal["constant"] = "constant"
    """Summed over tokens, divided by completions times `rollout.max_new_tokens`."""
    beta: float = Field(0.0, ge=0)
    """β: weight of the KL to the reference model; 0, as in the paper, keeps no reference."""
