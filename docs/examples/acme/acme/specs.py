"""What a recipe can say about it. Imports no torch: `build()` does."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from seqtune.config.spec import DenominatorUnit, Family, ObjectiveSpec
from seqtune.objectives.specs.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Ipo(ObjectiveSpec):
    """Identity Preference Optimization: the margin is drawn to 1/(2τ)."""

    family: ClassVar[Family] = "preference"
    formula: ClassVar[str] = "L = (1/B) Σ_i (h_i - 1/(2τ))²     h: log-ratio of chosen minus that of rejected"
    source: ClassVar[str] = "https://arxiv.org/abs/2310.12036"
    needs_reference: ClassVar[bool] = True

    name: Literal["ipo"] = "ipo"
    tau: float = Field(0.1, gt=0)
    """τ: strength of the pull towards the reference model."""

    @property
    def denominator_unit(self) -> DenominatorUnit:
        return "pairs"

    def build(self) -> Callable[..., Any]:
        from acme.ipo import ipo_loss

        return partial(ipo_loss, tau=self.tau)


class Gmpo(Policy):
    """Geometric-mean policy optimisation: ratios are clipped token by token, then averaged in the exponent."""

    formula: ClassVar[str] = "L = -(1/B) Σ_i A_i exp((1/n_i) Σ_t c_{i,t})     c: log π/π_old, clipped on the side of A"
    source: ClassVar[str] = "https://arxiv.org/abs/2507.20673"

    name: Literal["gmpo"] = "gmpo"
    epsilon_low: float = Field(0.4, gt=0)
    """ε_low: a log ratio below -ε_low counts as that where the advantage is not positive, nats; 0.4 in the paper."""
    epsilon_high: float = Field(0.4, gt=0)
    """ε_high: a log ratio above it counts as that where the advantage is positive, nats; 0.4 in the paper."""
    # What the loss does not read has one value, so that a recipe that sets another is refused and not ignored.
    advantage: Literal["group", "centered", "batch_std", "leave_one_out"] = "group"
    credit: Literal["sequence"] = "sequence"
    entropy_drop: float = Field(0, ge=0, le=0)
    ratio: Literal["sequence"] = "sequence"
    gradient: Literal["shared"] = "shared"
    clip: Literal["pessimistic"] = "pessimistic"
    bound: None = None
    correction: Literal["none"] = "none"
    rejection: Literal["none"] = "none"
    off_policy_threshold: None = None
    aggregation: Literal["sequence_mean"] = "sequence_mean"
    beta: float = Field(0, ge=0, le=0)

    def build(self) -> Callable[..., Any]:
        from acme.gmpo import gmpo_loss

        return partial(gmpo_loss, epsilon_low=self.epsilon_low, epsilon_high=self.epsilon_high)
