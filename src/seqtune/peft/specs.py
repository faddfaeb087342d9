"""What a recipe can say about the weights that are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from seqtune.config.spec import PeftSpec

if TYPE_CHECKING:
    from peft import LoraConfig


class Full(PeftSpec):
    """All weights of the model."""

    name: Literal["full"] = "full"

    def build(self) -> None:
        return None


class Lora(PeftSpec):
    """Low-rank adapters (https://arxiv.org/abs/2106.09685) beside frozen weights."""

    name: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1)
    """r: rank of each update."""
    alpha: float = Field(32.0, gt=0)
    """α: the update is scaled by α / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input; policy objectives train without, as they sample."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get an adapter; `all-linear` takes every linear layer but the LM head."""

    def build(self) -> LoraConfig:
        from peft import LoraConfig

        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
