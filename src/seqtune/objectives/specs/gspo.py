"""What a recipe can say about `gspo`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.policy import Policy


class Gspo(Policy):
    """Group Sequence Policy Optimization: one length-normalised ratio per completion is clipped."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i [-min(s_i A_i, clip(s_i, 1-ε_low, 1+ε_high) A_i) + beta KL_i]\n"
        "s_i = exp((1/n_i) Σ_t log (π/π_old)(y_{i,t}))     A_i: advantage     KL_i: mean over tokens, estimator kl"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2507.18071"

    name: Literal["gspo"] = "gspo"
    ratio: Literal["sequence"] = "sequence"
    """Unit of the importance ratio: the length-normalised whole completion."""
    epsilon_low: float = Field(3e-4, gt=0, lt=1)
    """ε_low: a ratio below 1 - ε_low gets no gradient when its advantage is negative. 3e-4 is the paper's."""
    epsilon_high: float = Field(4e-4, gt=0)
    """ε_high: a ratio above 1 + ε_high gets no gradient when its advantage is positive. 4e-4 is the paper's."""
