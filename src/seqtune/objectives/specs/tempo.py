"""What a recipe can say about `tempo`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.grpo import Grpo


class Tempo(Grpo):
    """TEMPO: GRPO with credit from the prefix tree of each group."""

    formula: ClassVar[str] = (
        "L = (1/N) Σ_i Σ_t -min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A)     A_{i,t} = a_i + w (V(s_{i,t}) - V(s_{i,t-1}))\n"
        "a_i = (r_i - mean) / (std + 1e-4)     V(s): mean a of the group's completions that begin with s"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2509.18314"

    name: Literal["tempo"] = "tempo"  # type: ignore[assignment]  # a name is one method's
    credit: Literal["tree"] = "tree"
    """Each branch of the group's prefix tree adds what it changes."""
    epsilon_high: float = Field(0.28, gt=0)
    """ε_high: a ratio above 1 + ε_high gets no gradient when its advantage is positive."""
    aggregation: Literal["sequence_mean", "token_mean", "token_sum", "constant"] = "token_mean"
    """Mean over all tokens of the step, or another of `policy`."""
    beta: float = Field(0.0, ge=0)
    """β: weight of the KL to the reference model; 0 keeps no reference."""
