"""What a recipe can say about `sft`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from seqtune.config.spec import DenominatorUnit, Family, ObjectiveSpec

if TYPE_CHECKING:
    from collections.abc import Callable


class Sft(ObjectiveSpec):
    """Supervised fine-tuning: negative log-likelihood of the trained tokens."""

    family: ClassVar[Family] = "sft"
    formula: ClassVar[str] = (
        "L = -(1/N) Σ_{i,t} m_{i,t} log π(y_{i,t} | y_{i,<t})     sequence_mean: -(1/B) Σ_i (1/n_i) Σ_t m_{i,t} log π\n"
        "m: 1 on trained tokens     N: trained tokens of the step     n_i: of document i     B: documents of the step"
    )
    source: ClassVar[str] = "https://huggingface.co/docs/trl/sft_trainer"

    name: Literal["sft"] = "sft"
    aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """`token_mean`: every trained token of the step weighs the same; `sequence_mean`: every document does."""

    @property
    def denominator_unit(self) -> DenominatorUnit:
        return "tokens" if self.aggregation == "token_mean" else "sequences"

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.sft import sft_loss

        return partial(sft_loss, aggregation=self.aggregation)
