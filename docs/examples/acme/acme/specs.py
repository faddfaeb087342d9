"""What a recipe can say about it. Imports no torch: `build()` does."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from seqtune.config.spec import DenominatorUnit, Family, ObjectiveSpec

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
