"""What a recipe can say about `reinforce_pp`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.policy import Policy


class ReinforcePP(Policy):
    """REINFORCE++: returns of tokens, whitened over the whole batch; the KL in the reward of each token."""

    formula: ClassVar[str] = (
        "L = (1/N) Σ_i Σ_t -min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A)     A: returns, whitened over the batch's tokens\n"
        "R_{i,t} = Σ_{u>=t} γ^(u-t) (r_i [u last] - beta log (π_old/π_ref)(y_{i,u}))"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2501.03262"

    name: Literal["reinforce_pp"] = "reinforce_pp"
    advantage: Literal["reinforce_pp", "reinforce_pp_baseline"] = "reinforce_pp"
    """`reinforce_pp`: returns whitened over the batch; `reinforce_pp_baseline`: r - mean of the group, whitened."""
    aggregation: Literal["sequence_mean", "token_mean", "token_sum", "constant"] = "token_mean"
    """Mean over all tokens of the step, or another of `policy`."""
    beta: float = Field(0.01, ge=0)
    """β: weight of the KL in the reward; 0 keeps no reference. 0.01 is OpenRLHF's."""
    kl: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL per token."""
    kl_in: Literal["loss", "reward"] = "reward"
    """Where β KL goes: taken off the reward of each token."""
