"""What a recipe can say about `prefix_rft`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class PrefixRft(Policy):
    """Prefix-RFT: one completion of each group goes on from a demonstration's beginning, which is learnt too."""

    formula: ClassVar[str] = (
        "L = (1/(B L_max)) Σ_i Σ_t -min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A)     A_i = r_i - mean(r)\n"
        "on demonstration tokens ρ has the value 1, and A is 0 but for the most uncertain prefix_keep of them"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2507.01679"

    name: Literal["prefix_rft"] = "prefix_rft"
    advantage: Literal["group", "centered"] = "centered"
    """`centered`: r - mean over the whole group, the hybrid completion included; `group` divides by the std."""
    prefix_keep: float = Field(0.2, ge=0, le=1)
    """Share of demonstration tokens, the most uncertain ones, that get a gradient."""
    share_first: float = Field(0.95, ge=0, le=1)
    """Least share of the demonstration that is given, at the first step."""
    share_last: float = Field(0.05, ge=0, le=1)
    """The same at the last step."""
    share_high: float = Field(0.95, ge=0, le=1)
    """Largest share of the demonstration that is given."""
    share_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the least share falls."""
    bound: float | None = Field(3.0, gt=1)
    """δ: a ratio above it gets no gradient when its advantage is negative either; 3 is the dual clip of the code."""
    aggregation: Literal["sequence_mean", "token_mean", "token_sum", "constant"] = "constant"
    """`constant`, as Dr. GRPO, or another of `policy`."""
    credit: Literal["sequence"] = "sequence"
    """One advantage a completion."""

    @property
    def advantage_inputs(self) -> frozenset[str]:
        return super().advantage_inputs | {"entropies", "mask", "prefix_mask"}

    @property
    def loss_inputs(self) -> frozenset[str]:
        return super().loss_inputs | {"prefix_mask"}

    @property
    def stops_gradient(self) -> bool:
        return True

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.prefix_rft import prefix_loss

        return partial(prefix_loss, **self._parts())

    def build_advantage(self) -> Callable[..., Any]:
        from seqtune.objectives.prefix_rft import uncertain_prefix

        whole = super().build_advantage()

        def of_prefix(
            rewards: Tensor, *, entropies: Tensor, mask: Tensor, prefix_mask: Tensor, **inputs: Tensor
        ) -> Tensor:
            a: Tensor = whole(rewards, entropies=entropies, mask=mask, **inputs)
            return uncertain_prefix(a, entropies, mask, prefix_mask, self.prefix_keep)

        return of_prefix

    def build_prefix_shares(self, steps: int) -> Callable[[int], tuple[float, float]]:
        """`step -> (least, largest)` share of a demonstration, for a run of `steps` steps; drawn evenly in between."""
        from seqtune.objectives.prefix_rft import prefix_share

        least = partial(
            prefix_share, first=self.share_first, last=self.share_last, steps=steps, schedule=self.share_schedule
        )
        return lambda step: (least(step), max(least(step), self.share_high))
