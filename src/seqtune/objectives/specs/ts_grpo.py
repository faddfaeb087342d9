"""What a recipe can say about `ts_grpo`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class TsGrpo(Policy):
    """TS-GRPO: token ratios in the plan, one ratio for the answer."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i [λ_P (1/|P_i|) Σ_{t∈P_i} PC(ρ_{i,t}, A^P_i) + λ_S PC(s_i, A^S_i)]     PC: pessimistic clip\n"
        "s_i = exp(mean over the answer of log π/π_old)     λ_P: plan_weight     λ_S: answer_weight"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2510.00186"

    name: Literal["ts_grpo"] = "ts_grpo"
    marker: str = Field("</think>", min_length=1)
    """Text that ends the plan; a completion without it is all answer."""
    plan_advantage: Literal["answer", "own", "sum"] = "answer"
    """Advantage of the plan: the `answer`'s, its `own` from a reward of the plan, or their `sum`."""
    plan_weight: float = Field(1.0, ge=0)
    """λ_P: weight of the plan."""
    answer_weight: float = Field(1.0, ge=0)
    """λ_S: weight of the answer."""
    plan_epsilon_low: float = Field(0.2, gt=0, lt=1)
    """ε_low of the plan's token ratios."""
    plan_epsilon_high: float = Field(0.2, gt=0)
    """ε_high of the plan's token ratios."""
    epsilon_low: float = Field(3e-3, gt=0, lt=1)
    """ε_low of the answer's ratio; short spans need a wider range than a whole completion."""
    epsilon_high: float = Field(4e-3, gt=0)
    """ε_high of the answer's ratio."""
    advantage: Literal["group", "centered"] = "group"
    """`group`: (r - mean) / (std + 1e-4) within the group; `centered`: r - mean."""
    ratio: Literal["segment"] = "segment"
    """Each token of the plan, the answer as a whole."""
    gradient: Literal["shared"] = "shared"
    """The tokens of the answer share its ratio's gradient."""
    clip: Literal["pessimistic"] = "pessimistic"
    """PPO's minimum, with the range of each span."""
    bound: None = None
    """No outer bound."""
    credit: Literal["sequence"] = "sequence"
    """One advantage a span."""
    correction: Literal["none"] = "none"
    """No weight of the engine that sampled."""
    rejection: Literal["none"] = "none"
    """No completion is left out."""
    off_policy_threshold: None = None
    """No completion is left out."""
    aggregation: Literal["sequence_mean"] = "sequence_mean"
    """Mean over the tokens of each span, then over completions."""
    beta: float = Field(0.0, ge=0, le=0)
    """No KL: a span's normaliser would weigh it."""

    @property
    def advantage_inputs(self) -> frozenset[str]:
        own = frozenset({"plan_rewards"}) if self.plan_advantage != "answer" else frozenset()
        return super().advantage_inputs | {"segments", "mask"} | own

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.ts_grpo import ts_grpo_loss

        return partial(
            ts_grpo_loss,
            plan_epsilon_low=self.plan_epsilon_low,
            plan_epsilon_high=self.plan_epsilon_high,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            plan_weight=self.plan_weight,
            answer_weight=self.answer_weight,
        )

    def build_advantage(self) -> Callable[..., Any]:
        import torch

        whole = super().build_advantage()
        of_plans = Policy.build_advantage(self.model_copy(update={"overlong": 0.0}))  # a penalty is of the whole

        def by_span(
            rewards: Tensor, *, segments: Tensor, mask: Tensor, plan_rewards: Tensor | None = None, **inputs: Tensor
        ) -> Tensor:
            answer: Tensor = whole(rewards, mask=mask, **inputs)
            answer = answer if answer.dim() == 2 else answer.unsqueeze(1).expand(mask.shape)
            if plan_rewards is None:
                plan = answer
            else:
                planned = (mask.bool() & (segments == 0)).any(1)
                earned = torch.where(planned, plan_rewards, 0.0).masked_fill(rewards.isnan(), torch.nan)
                own: Tensor = of_plans(earned, mask=mask, **inputs)
                own = (own if own.dim() == 2 else own.unsqueeze(1)).expand(mask.shape).to(answer)
                plan = own + answer if self.plan_advantage == "sum" else own
            inside = mask.bool() & ((segments == 0) | (segments == 1))
            return torch.where(inside, torch.where(segments == 0, plan, answer), answer * 0)

        return by_span

    def build_segments(self) -> Callable[[list[str]], list[int]]:
        from seqtune.objectives.segments import plan_and_answer

        return partial(plan_and_answer, marker=self.marker)
