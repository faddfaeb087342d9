"""Rules of the model, its adapter and how it is spread over devices."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

from seqtune.config.axes import TinyModelSpec
from seqtune.config.rules.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from seqtune.config.plan import Stage


def tiny_shapes(stage: Stage) -> Iterator[Violation]:
    model = stage.model
    if not isinstance(model, TinyModelSpec):
        return
    if model.hidden_size % model.heads or (model.hidden_size // model.heads) % 2:
        yield Violation(
            f"model.hidden_size={model.hidden_size} is not an even multiple of model.heads={model.heads}",
            ("model.hidden_size", "model.heads"),
            f"model.hidden_size={2 * model.heads * max(1, round(model.hidden_size / (2 * model.heads)))}",
        )
    if model.heads % model.kv_heads:
        yield Violation(
            f"model.heads={model.heads} is not a multiple of model.kv_heads={model.kv_heads}",
            ("model.kv_heads", "model.heads"),
            f"model.kv_heads={gcd(model.heads, model.kv_heads)}",
        )


def lm_head_adapter(stage: Stage) -> Iterator[Violation]:
    targets = getattr(stage.peft, "targets", ())
    if stage.objective.family == "policy" and not isinstance(targets, str) and "lm_head" in targets:
        yield Violation(
            f"objective '{stage.objective.name}' reads log-probs through a fused LM head, "
            "which an adapter on lm_head bypasses",
            ("peft.targets", "objective.name"),
            "leave lm_head out of peft.targets",
        )


def sharded_float16(stage: Stage) -> Iterator[Violation]:
    if stage.parallel.name == "fsdp2" and stage.model.dtype == "float16":
        yield Violation(
            "float16 needs loss scaling, which sharded gradients do not have here",
            ("model.dtype", "parallel.name"),
            "model.dtype=bfloat16",
        )
