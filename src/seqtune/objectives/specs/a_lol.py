"""What a recipe can say about `a_lol`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from seqtune.config.spec import DenominatorUnit, Family, ObjectiveSpec

if TYPE_CHECKING:
    from collections.abc import Callable


class _ScoredTexts(ObjectiveSpec):
    """What the A-LoL family shares: the value of a prompt, and which texts are drawn."""

    family: ClassVar[Family] = "offline"
    source: ClassVar[str] = "https://arxiv.org/abs/2305.14718"

    value: Literal["fit", "group_mean"] = "fit"
    """V_ref: `fit`: a head on the frozen start model, fitted before step 1 to what the stage's reward gives completions
    of its own; `group_mean`: mean score of the prompt's own completions in the data, which needs neither."""
    value_samples: int = Field(4, ge=1)
    """Completions of each prompt that V is fitted to."""
    value_prompts: int = Field(512, ge=5)
    """Prompts, at most, that are completed to fit V; a fifth of them tells how good it is."""
    sampling: Literal["priority", "positive", "all"] = "priority"
    """Rows of a step: texts drawn in proportion to A (the paper's), every text with A > 0 alike, or whole groups of all
    texts."""

    @property
    def denominator_unit(self) -> DenominatorUnit:
        return "sequences"

    @property
    def samples_reference(self) -> bool:
        return self.value == "fit"


class ALol(_ScoredTexts):
    """A-LoL: likelihood of scored texts, weighted by what they earn beyond what the reference model is expected to."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i A_i c_i Σ_t -log π(y_{i,t})     A_i = max(R_i - V_ref(x_i), 0)\n"
        "c_i = sg(clip(exp(Σ_t log (π/π_ref)(y_{i,t})), 1-ε, 1+ε))"
    )
    needs_reference: ClassVar[bool] = True
    ratio: ClassVar[str] = "sequence"

    name: Literal["a_lol"] = "a_lol"
    epsilon: float = Field(0.9, gt=0, lt=1)
    """ε: range of the ratio to the reference; 0.9 is the code's."""

    @property
    def stops_gradient(self) -> bool:
        return True

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.a_lol import a_lol_loss

        return partial(a_lol_loss, ratio=self.ratio, epsilon=self.epsilon)


class ALolSeq(ALol):
    """A-LoL sequence: the ratio to the reference of each token instead of their product."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i A_i Σ_t -c_{i,t} log π(y_{i,t})     A_i = max(R_i - V_ref(x_i), 0)\n"
        "c_{i,t} = sg(clip((π/π_ref)(y_{i,t}), 1-ε, 1+ε))"
    )
    ratio: ClassVar[str] = "token"

    name: Literal["a_lol_seq"] = "a_lol_seq"  # type: ignore[assignment]  # a name is one method's


class ALolRefFree(_ScoredTexts):
    """A-LoL without reference: advantage-weighted likelihood alone."""

    formula: ClassVar[str] = "L = (1/B) Σ_i A_i Σ_t -log π(y_{i,t})     A_i = max(R_i - V_ref(x_i), 0)"

    name: Literal["a_lol_ref_free"] = "a_lol_ref_free"

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.a_lol import a_lol_loss

        return partial(a_lol_loss, ratio="none")


class ALolKl(ALolRefFree):
    """A-LoL KL: the ratio to the reference replaced by a KL penalty."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i [A_i Σ_t -log π(y_{i,t}) + beta Σ_t log (π/π_ref)(y_{i,t})]     A_i = max(R_i - V_ref(x_i), 0)"
    )
    needs_reference: ClassVar[bool] = True

    name: Literal["a_lol_kl"] = "a_lol_kl"  # type: ignore[assignment]  # a name is one method's
    beta: float = Field(0.1, ge=0)
    """β: weight of the log ratio to the reference."""

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.a_lol import a_lol_loss

        return partial(a_lol_loss, ratio="none", beta=self.beta)
