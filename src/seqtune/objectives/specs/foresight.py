"""What a recipe can say about `foresight`."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.grpo import Grpo

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Foresight(Grpo):
    """Hi-Agent's foresight advantage: a subgoal is worth what a low-level model makes of it one step ahead."""

    formula: ClassVar[str] = (
        "L as grpo, on the subgoal's tokens     A_i = (R_i - mean(R)) / (std(R) + 1e-4)\n"
        "R_i = w_fmt fmt_i + w_exec mean_k exec_{i,k} + w_judge judge_i"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2510.14388"

    name: Literal["foresight"] = "foresight"  # type: ignore[assignment]  # a name is one method's
    format_weight: float = Field(0.2, ge=0)
    """w_fmt: weight of the subgoal's form."""
    execution_weight: float = Field(0.6, ge=0)
    """w_exec: weight of what its executions earn."""
    judge_weight: float = Field(0.2, ge=0)
    """w_judge: weight of the judge's score."""
    executions: int = Field(1, ge=1)
    """K: executions of each subgoal that the reward tells the scores of."""

    @property
    def advantage_inputs(self) -> frozenset[str]:
        return super().advantage_inputs | {"format_scores", "executions", "judge_scores"}

    def build_advantage(self) -> Callable[..., Any]:
        whole, worth = super().build_advantage(), self.build_worth()

        def ahead(
            rewards: Tensor, *, format_scores: Tensor, executions: Tensor, judge_scores: Tensor, **inputs: Tensor
        ) -> Tensor:
            known = worth(format_scores, executions, judge_scores).masked_fill(rewards.isnan(), math.nan)
            found: Tensor = whole(known, **inputs)
            return found

        return ahead

    def build_worth(self) -> Callable[..., Any]:
        """`(format_scores[B], executions[B, K], judge_scores[B]) -> R[B]`; imports torch."""
        from seqtune.objectives.foresight import foresight

        return partial(foresight, weights=(self.format_weight, self.execution_weight, self.judge_weight))
