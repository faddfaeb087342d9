"""What a recipe can say about `dpo`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from seqtune.config.spec import DenominatorUnit, Family, ObjectiveSpec

if TYPE_CHECKING:
    from collections.abc import Callable


class Dpo(ObjectiveSpec):
    """Direct Preference Optimization: a logistic loss on the difference of implicit rewards."""

    family: ClassVar[Family] = "preference"
    formula: ClassVar[str] = (
        "L = -(1/B) Σ_i [(1-λ) log σ(z_i) + λ log σ(-z_i)]     z_i = r̂(chosen_i) - r̂(rejected_i)\n"
        "r̂(y) = beta Σ_t log (π/π_ref)(y_t)     λ: label_smoothing     B: pairs of the step"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2305.18290"
    needs_reference: ClassVar[bool] = True

    name: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    """β: strength of the pull towards the reference model. 0.1 is the paper's and TRL's default."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """λ: probability that a preference label is flipped (conservative DPO, https://ericmitchell.ai/cdpo.pdf)."""

    @property
    def denominator_unit(self) -> DenominatorUnit:
        return "pairs"

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.dpo import dpo_loss

        return partial(dpo_loss, beta=self.beta, label_smoothing=self.label_smoothing)
