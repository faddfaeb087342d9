"""What a recipe can say about `dagrpo`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.grpo import Grpo

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class DaGrpo(Grpo):
    """DaGRPO: completions hardly different from one with the other outcome are left out."""

    formula: ClassVar[str] = (
        "L = Σ_i k_i Σ_t -min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A) / Σ_i k_i n_i\n"
        "k_i = [edit distance to every completion of the group with the other outcome >= τ]     A: before leaving out"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2512.06337"

    name: Literal["dagrpo"] = "dagrpo"  # type: ignore[assignment]  # a name is one method's
    tau: float = Field(0.2, ge=0)
    """τ: least edit distance, over the longer completion's tokens; 0 keeps all."""
    success: float = 0.5
    """A reward above it is a success."""
    anchors: bool = False
    """Put a demonstration into groups without a success."""
    anchor_gamma: float = Field(0.1, gt=0)
    """γ of an anchor's tokens: their weight is π / (π + γ)."""
    aggregation: Literal["token_mean"] = "token_mean"
    """Mean over all tokens that are kept."""
    beta: float = Field(0.0, ge=0)
    """β: weight of the KL to the reference model; 0 keeps no reference."""

    @property
    def advantage_inputs(self) -> frozenset[str]:
        return super().advantage_inputs | {"completion_ids", "mask"}

    @property
    def loss_inputs(self) -> frozenset[str]:
        return super().loss_inputs | ({"prefix_mask"} if self.anchors else frozenset())

    @property
    def anchor_below(self) -> float | None:
        return self.success if self.anchors else None

    def build(self) -> Callable[..., Any]:
        if not self.anchors:
            return super().build()
        from seqtune.objectives.dagrpo import anchored_loss

        return partial(anchored_loss, gamma=self.anchor_gamma, **self._parts())

    def build_advantage(self) -> Callable[..., Any]:
        import torch

        from seqtune.objectives.dagrpo import distinct, edit_distances

        whole = super().build_advantage()

        def of_distinct(rewards: Tensor, *, completion_ids: Tensor, mask: Tensor, **inputs: Tensor) -> Tensor:
            a: Tensor = whole(rewards, completion_ids=completion_ids, mask=mask, **inputs)
            distances = edit_distances(completion_ids, mask, self.group_size)
            keep = distinct(rewards, distances, success=self.success, tau=self.tau).to(a.device)
            return torch.where(keep if a.dim() == 1 else keep.unsqueeze(1), a, torch.nan)

        return of_distinct
