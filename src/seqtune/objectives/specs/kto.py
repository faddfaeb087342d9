"""What a recipe can say about `kto`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from seqtune.config.spec import DenominatorUnit, Family, ObjectiveSpec

if TYPE_CHECKING:
    from collections.abc import Callable


class Kto(ObjectiveSpec):
    """Kahneman–Tversky optimisation: each completion against a reference point shared by all, not its partner."""

    family: ClassVar[Family] = "preference"
    formula: ClassVar[str] = (
        "L = (1/2B) Σ_i [λ_D (1 - σ(beta (r(chosen_i) - z))) + λ_U (1 - σ(beta (z - r(rejected_i))))]\n"
        "r(y) = Σ_t log (π/π_ref)(y_t)     z = max(0, mean of r over completions of other prompts)\n"
        "λ_D: desirable_weight     λ_U: undesirable_weight     B: pairs of the step"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2402.01306"
    needs_reference: ClassVar[bool] = True
    needs_mismatched: ClassVar[bool] = True

    name: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0)
    """β: strength of the pull towards the reference model. 0.1 is the paper's and TRL's default."""
    desirable_weight: float = Field(1.0, gt=0)
    """λ_D: weight of the chosen completions."""
    undesirable_weight: float = Field(1.0, gt=0)
    """λ_U: weight of the rejected completions."""

    @property
    def denominator_unit(self) -> DenominatorUnit:
        return "pairs"

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.kto import kto_loss

        return partial(
            kto_loss,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
