"""What a recipe can say about `rank_grpo`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable


class RankGrpo(Policy):
    """Rank-GRPO: each item of a list is one action, compared with the same rank of the group's other lists."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i (1/K) Σ_k -min(w_{i,k} A_{i,k}, clip(w_{i,k}, 1-ε_low, 1+ε_high) A_{i,k}) + beta KL\n"
        "w_{i,k} = exp(mean over item k of log π/π_old)     A_{i,k} = (r_{i,k} - mean_i r_{·,k}) / (std + 1e-4)"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2510.20150"

    name: Literal["rank_grpo"] = "rank_grpo"
    ranks: int = Field(20, ge=1)
    """K: items of a list, one a line."""
    rank_reward: Literal["discounted", "own"] = "discounted"
    """`discounted`: DCG of this rank and those below it (log_decay); `own`: what the item itself earns (exp_inf)."""
    overflow_penalty: float = Field(0.1, ge=0)
    """Taken off the advantage of tokens beyond item K."""
    ending_bonus: float = Field(0.1, ge=0)
    """Added to the end-of-sequence token's advantage after K items, taken off after fewer."""
    aggregation: Literal["rank", "token_mean", "sequence_mean", "token_sum"] = "rank"  # type: ignore[assignment]  # by rank
    """`rank`: every item weighs the same; or over tokens, as `policy`."""
    epsilon_low: float = Field(0.06, gt=0, lt=1)
    """ε_low: the paper's."""
    epsilon_high: float = Field(0.08, gt=0)
    """ε_high: the paper's."""
    beta: float = Field(1e-3, ge=0)
    """β: weight of the KL to the reference model; 0 keeps no reference. 1e-3 is the paper's."""
    advantage: Literal["group"] = "group"
    """(r - mean) / (std + 1e-4) at each rank."""
    ratio: Literal["segment"] = "segment"
    """Each item."""
    credit: Literal["sequence"] = "sequence"
    """Credit is by rank."""
    overlong: float = Field(0.0, ge=0, le=0)
    """Lists have their own shaping."""
    truncated: Literal["keep"] = "keep"
    """A list that was cut off is compared rank by rank as far as it goes."""
    entropy_drop: float = Field(0.0, ge=0, le=0)
    """Every token of an item has the item's advantage."""
    kl_in: Literal["loss"] = "loss"
    """Rewards are of ranks, so that no completion's KL can be taken off them."""

    @property
    def advantage_inputs(self) -> frozenset[str]:
        return super().advantage_inputs | {"rank_rewards", "segments", "mask", "ended"}

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.rank_grpo import rank_loss

        parts = {key: value for key, value in self._parts().items() if key != "ratio"}
        return partial(rank_loss, ranks=self.ranks, **parts)

    def build_advantage(self) -> Callable[..., Any]:
        from seqtune.objectives.rank_grpo import rank_advantages

        return partial(
            rank_advantages,
            group_size=self.group_size,
            ranks=self.ranks,
            discounted=self.rank_reward == "discounted",
            overflow=self.overflow_penalty,
            ending=self.ending_bonus,
        )
