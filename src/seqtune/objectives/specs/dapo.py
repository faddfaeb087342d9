"""What a recipe can say about `dapo`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.grpo import Grpo


class Dapo(Grpo):
    """DAPO: a wider upper clip, every token weighs the same, overlong completions are penalised and left out."""

    formula: ClassVar[str] = (
        "L = (1/N) Σ_i Σ_t -min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A)     N: tokens of the step\n"
        "r_i = reward - overlong penalty; truncated completions are left out of the loss"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2503.14476"

    name: Literal["dapo"] = "dapo"  # type: ignore[assignment]  # a name is one method's
    epsilon_high: float = Field(0.28, gt=0)
    """ε_high: a ratio above 1 + ε_high gets no gradient when its advantage is positive. 0.28 is the paper's."""
    aggregation: Literal["token_mean"] = "token_mean"
    """Mean over all tokens of the step."""
    overlong: float = Field(0.2, ge=0, lt=1)
    """Last part of `rollout.max_new_tokens` over which the soft overlong penalty takes 0 to -1 off the reward. The
    paper's: 4096 of 20480 tokens."""
    truncated: Literal["keep", "drop"] = "drop"
    """Completions cut off at `rollout.max_new_tokens`: `drop` leaves them out of the loss, not of the group's mean."""
    sampling_rounds: int = Field(10, ge=1)
    """Rounds of prompts a rollout samples at most to find groups whose rewards differ. 10 is the paper's code's."""
    beta: float = Field(0.0, ge=0)
    """β: weight of the KL to the reference model; 0, as in the paper, keeps no reference."""
