"""What a recipe can say about `slic`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from seqtune.config.spec import DenominatorUnit, Family, ObjectiveSpec

if TYPE_CHECKING:
    from collections.abc import Callable


class Slic(ObjectiveSpec):
    """SLiC: the better of two completions of a prompt becomes the more probable one, by a margin; no reference."""

    family: ClassVar[Family] = "ranking"
    formula: ClassVar[str] = (
        "L = (1/P) Σ_p [C(lp, s) - λ lp(best)]     lp = Σ_t log π(y_t)     s: scores     P: prompts of the step\n"
        "calibration=rank: C = mean over pairs with s_i > s_j of max(0, δ - lp_i + lp_j)"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2210.00045"

    name: Literal["slic"] = "slic"
    calibration: Literal["rank", "margin", "list", "reward"] = "rank"
    """C: `rank`: a hinge on every pair of completions with different scores; `margin`: its δ grows with the difference
    of the scores; `list`: with the difference of their ranks, summed; `reward`: minus the score that is expected of a
    draw among the group."""
    margin: float = Field(1.0, ge=0)
    """δ: nats by which the better completion should be the more probable one. 1 is SLiC-HF's
    (https://arxiv.org/abs/2305.10425)."""
    regularisation: float = Field(0.5, ge=0)
    """λ: weight of the negative log-likelihood of the group's best completion, SLiC-HF's regulariser; 0 has none."""

    @property
    def denominator_unit(self) -> DenominatorUnit:
        return "groups"

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.slic import slic_loss

        return partial(slic_loss, calibration=self.calibration, margin=self.margin, regularisation=self.regularisation)
