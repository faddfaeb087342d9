"""What a recipe can say about `reward`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from seqtune.config.spec import DenominatorUnit, Family, ObjectiveSpec

if TYPE_CHECKING:
    from collections.abc import Callable


class Reward(ObjectiveSpec):
    """Bradley–Terry reward model: the chosen completion scores above the rejected one."""

    family: ClassVar[Family] = "reward"
    formula: ClassVar[str] = (
        "L = -(1/B) Σ_i log σ(r(chosen_i) - r(rejected_i)) + c (1/B) Σ_i (r(chosen_i) + r(rejected_i))²\n"
        "c: center_coefficient     B: pairs of the step"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2203.02155"

    name: Literal["reward"] = "reward"
    center_coefficient: float = Field(0.0, ge=0)
    """c: pulls the rewards of a pair towards mean zero (https://arxiv.org/abs/2312.09244); 0.01 there."""

    @property
    def denominator_unit(self) -> DenominatorUnit:
        return "pairs"

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.reward import reward_loss

        return partial(reward_loss, center_coefficient=self.center_coefficient)
