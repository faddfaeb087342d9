"""What a recipe can say about each objective. Imports no torch: the functions are imported by `build()`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from seqtune.config.spec import DenominatorUnit, Family, ObjectiveSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Sft(ObjectiveSpec):
    """Supervised fine-tuning: negative log-likelihood of the trained tokens."""

    family: ClassVar[Family] = "sft"
    formula: ClassVar[str] = (
        "L = -(1/N) Σ_{i,t} m_{i,t} log π(y_{i,t} | y_{i,<t})\nm: 1 on trained tokens     N: trained tokens of the step"
    )
    source: ClassVar[str] = "https://huggingface.co/docs/trl/sft_trainer"

    name: Literal["sft"] = "sft"

    @property
    def denominator_unit(self) -> DenominatorUnit:
        return "tokens"

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.sft import sft_loss

        return sft_loss


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


class Policy(ObjectiveSpec):
    """A point in the space of group policy objectives; `grpo`, `gspo`, … are named points of it."""

    family: ClassVar[Family] = "policy"
    formula: ClassVar[str] = (
        "L = aggregation_{i,t}[-min(w A, clip(w, 1-ε_low, 1+ε_high) A) + beta KL]     KL: π from π_ref, estimator kl\n"
        "ratio=token: w = (π/π_old)(y_{i,t})     ratio=sequence: w = exp((1/n_i) Σ_t log (π/π_old)(y_{i,t}))"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2402.03300"

    name: str = "policy"
    group_size: int = Field(8, ge=2)
    """G: completions sampled for each prompt."""
    advantage: Literal["group", "centered"] = "group"
    """`group`: (r - mean) / (std + 1e-4) within the group, std with ddof 1; `centered`: r - mean."""
    ratio: Literal["token", "sequence"] = "token"
    """Unit of the importance ratio: each token, or the length-normalised whole completion."""
    epsilon_low: float = Field(0.2, gt=0, lt=1)
    """ε_low: a ratio below 1 - ε_low gets no gradient when its advantage is negative."""
    epsilon_high: float = Field(0.2, gt=0)
    """ε_high: a ratio above 1 + ε_high gets no gradient when its advantage is positive."""
    aggregation: Literal["sequence_mean", "token_mean", "token_sum"] = "sequence_mean"
    """`sequence_mean`: mean over tokens, then over completions; `token_mean`: over all tokens of the step;
    `token_sum`: sum over tokens, then mean over completions."""
    beta: float = Field(0.0, ge=0)
    """β: weight of the KL to the reference model; 0 keeps no reference."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL per token (http://joschu.net/blog/kl-approx.html)."""

    @property
    def denominator_unit(self) -> DenominatorUnit:
        return "tokens" if self.aggregation == "token_mean" else "sequences"

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.policy import policy_loss

        return partial(
            policy_loss,
            ratio=self.ratio,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            aggregation=self.aggregation,
            beta=self.beta,
            kl=self.kl,
        )

    def build_advantage(self) -> Callable[..., Any]:
        """`rewards[B] -> advantages[B]` for whole groups in contiguous rows, NaN for a missing score; imports torch."""
        from seqtune.objectives.advantages import ADVANTAGES

        return partial(ADVANTAGES[self.advantage], group_size=self.group_size)


class Grpo(Policy):
    """Group Relative Policy Optimization: token ratios, advantages normalised within the group."""

    formula: ClassVar[str] = (
        "L = aggregation_{i,t}[-min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A) + beta KL]     ρ_{i,t} = (π/π_old)(y_{i,t})\n"
        "sequence_mean: (1/B) Σ_i (1/n_i) Σ_t     A_i: advantage     KL: of π from π_ref, estimator kl"
    )

    name: Literal["grpo"] = "grpo"
    ratio: Literal["token"] = "token"
    """Unit of the importance ratio: each token."""
    beta: float = Field(0.04, ge=0)
    """β: weight of the KL to the reference model; 0 keeps no reference. 0.04 is the paper's; TRL takes 0."""


class Gspo(Policy):
    """Group Sequence Policy Optimization: one length-normalised ratio per completion is clipped."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i [-min(s_i A_i, clip(s_i, 1-ε_low, 1+ε_high) A_i) + beta KL_i]\n"
        "s_i = exp((1/n_i) Σ_t log (π/π_old)(y_{i,t}))     A_i: advantage     KL_i: mean over tokens, estimator kl"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2507.18071"

    name: Literal["gspo"] = "gspo"
    ratio: Literal["sequence"] = "sequence"
    """Unit of the importance ratio: the length-normalised whole completion."""
    epsilon_low: float = Field(3e-4, gt=0, lt=1)
    """ε_low: a ratio below 1 - ε_low gets no gradient when its advantage is negative. 3e-4 is the paper's."""
    epsilon_high: float = Field(4e-4, gt=0)
    """ε_high: a ratio above 1 + ε_high gets no gradient when its advantage is positive. 4e-4 is the paper's."""
