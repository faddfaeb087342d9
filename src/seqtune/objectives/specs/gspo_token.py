"""What a recipe can say about `gspo_token`."""

from __future__ import annotations

from typing import ClassVar, Literal

from seqtune.objectives.specs.gspo import Gspo


class GspoToken(Gspo):
    """GSPO-token: the completion's ratio with the gradient of each token, so that tokens may differ in advantage."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i (1/n_i) Σ_t -min(s_{i,t} A_{i,t}, clip(s_{i,t}, 1-ε_low, 1+ε_high) A_{i,t}) + beta KL\n"
        "s_{i,t} = sg(s_i) exp(log π - sg(log π))     s_i = exp((1/n_i) Σ_t log (π/π_old)(y_{i,t}))"
    )

    name: Literal["gspo_token"] = "gspo_token"  # type: ignore[assignment]  # a name is one method's
    gradient: Literal["token"] = "token"
    """Each token has the gradient of its own log-prob, with the value of the completion's ratio."""
