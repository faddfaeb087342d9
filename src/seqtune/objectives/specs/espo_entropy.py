"""What a recipe can say about `espo_entropy`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.gspo import Gspo

if TYPE_CHECKING:
    from collections.abc import Callable


class EspoEntropy(Gspo):
    """ESPO (entropy): each completion's tokens are grouped by entropy; each group has its ratio and its clip range."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i (1/n_i) Σ_t -min(w A, clip(w, 1-φ ε_low, 1+φ ε_high) A)     w = sg(w_k) exp(log π - sg(log π))\n"
        "w_k = exp(mean of log π/π_old over group k)     φ_k = 1 + α (H̄_k - H̄) / H̄     H̄: mean entropy"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2512.00499"

    name: Literal["espo_entropy"] = "espo_entropy"  # type: ignore[assignment]  # a name is one method's
    grouping: Literal["share", "bins"] = "share"
    """`share`: the most uncertain tokens and the rest; `bins`: groups of equally many tokens by entropy."""
    share: float = Field(0.2, gt=0, lt=1)
    """Share of tokens in the uncertain group of `grouping=share`."""
    bins: int = Field(2, ge=1)
    """Groups of `grouping=bins`; 1 is GSPO-token."""
    alpha: float = Field(0.5, ge=0)
    """α: how much the clip range widens with entropy; 0 clips all groups alike."""
    width_low: float = Field(0.25, ge=0, le=1)
    """Least φ."""
    width_high: float = Field(4.0, ge=1)
    """Largest φ."""
    epsilon_low: float = Field(3e-3, gt=0, lt=1)
    """ε_low, before φ."""
    epsilon_high: float = Field(4e-3, gt=0)
    """ε_high, before φ."""
    ratio: Literal["segment"] = "segment"  # type: ignore[assignment]  # of parts, not of the whole as in GSPO
    """Each group of tokens."""
    gradient: Literal["token"] = "token"
    """Each token has the gradient of its own log-prob, with the value of its group's ratio."""
    clip: Literal["pessimistic"] = "pessimistic"
    """PPO's minimum, with the range of each group."""
    bound: None = None
    """No outer bound."""

    @property
    def loss_inputs(self) -> frozenset[str]:
        return super().loss_inputs - {"segments"} | {"entropies"}

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.espo_entropy import espo_loss

        parts = {key: value for key, value in self._parts().items() if key not in ("ratio", "clip", "token_gradient")}
        return partial(
            espo_loss,
            share=self.share if self.grouping == "share" else None,
            bins=self.bins,
            alpha=self.alpha,
            limits=(self.width_low, self.width_high),
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            **parts,
        )
