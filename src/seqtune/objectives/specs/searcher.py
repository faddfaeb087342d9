"""What a recipe can say about `searcher`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from seqtune.objectives.specs.reinforce_pp import ReinforcePP

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Searcher(ReinforcePP):
    """R1-Searcher++: retrieved text is never trained on; fewest retrievals are rewarded; answers are memorised."""

    formula: ClassVar[str] = (
        "L = reinforce_pp on the model's own tokens + μ (1/N) Σ -log π over answers rewritten as own knowledge\n"
        "reward + min(2 var(calls), 2) for the correct completions of a group with the fewest retrievals"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2505.17005"

    name: Literal["searcher"] = "searcher"  # type: ignore[assignment]  # a name is one method's
    correct: float = 0.5
    """A reward above it is a correct answer."""
    calls_weight: float = Field(2.0, ge=0)
    """Factor of the variance of the number of retrievals."""
    calls_limit: float = Field(2.0, ge=0)
    """Largest bonus for the fewest retrievals."""
    mu: float = Field(0.1, ge=0)
    """μ: weight of memorising; 0 leaves it out."""

    @property
    def advantage_inputs(self) -> frozenset[str]:
        return super().advantage_inputs | {"calls"}

    @property
    def loss_inputs(self) -> frozenset[str]:
        return super().loss_inputs | ({"memory_mask"} if self.mu else frozenset())

    def build(self) -> Callable[..., Any]:
        if not self.mu:
            return super().build()
        from seqtune.objectives.searcher import memorising_loss

        return partial(memorising_loss, mu=self.mu, **self._parts())

    def build_advantage(self) -> Callable[..., Any]:
        from seqtune.objectives.searcher import fewest_calls

        whole = super().build_advantage()

        def with_bonus(rewards: Tensor, *, calls: Tensor, **inputs: Tensor) -> Tensor:
            bonus = fewest_calls(
                rewards > self.correct, calls, self.group_size, weight=self.calls_weight, limit=self.calls_limit
            )
            found: Tensor = whole(rewards + bonus.to(rewards), **inputs)
            return found

        return with_bonus
