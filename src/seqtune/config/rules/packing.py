"""Rules of packed rows and their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqtune.config.order import GrowLength
from seqtune.config.rules.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from seqtune.config.plan import Stage


def packing_applies(stage: Stage) -> Iterator[Violation]:
    if stage.objective.family != "sft" and stage.packing.path is not None:
        yield Violation(
            f"packing.path holds packed rows of texts, which objective '{stage.objective.name}' does not train on",
            ("packing.path", "objective.name"),
            "packing.path=null",
        )
    if stage.objective.family != "sft" and stage.packing.name != "none":
        yield Violation(
            f"objective '{stage.objective.name}' batches padded pairs or completions; "
            f"packing '{stage.packing.name}' would not be used",
            ("packing.name", "objective.name"),
            "packing=none",
        )


def documents_whole(stage: Stage) -> Iterator[Violation]:
    """A mean over documents needs each of them in one piece, alone, or it would count twice."""
    packing = stage.packing
    if getattr(stage.objective, "aggregation", None) != "sequence_mean" or stage.objective.family != "sft":
        return
    if packing.name in ("wrapped", "dataset_decomposition", "bos_crop"):
        yield Violation(
            f"objective.aggregation=sequence_mean weighs whole documents, and packing '{packing.name}' cuts them",
            ("objective.aggregation", "packing.name"),
            "packing=best_fit, or objective.aggregation=token_mean",
        )
    elif packing.on_overflow == "split":
        yield Violation(
            "objective.aggregation=sequence_mean weighs whole documents, and packing.on_overflow=split cuts long ones",
            ("objective.aggregation", "packing.on_overflow"),
            "packing.on_overflow=truncate or drop, or objective.aggregation=token_mean",
        )
    if packing.attention == "causal":
        yield Violation(
            "objective.aggregation=sequence_mean weighs documents, and packing.attention=causal makes one of each row",
            ("objective.aggregation", "packing.attention"),
            "packing.attention=document, or objective.aggregation=token_mean",
        )


def orders_fit(stage: Stage) -> Iterator[Violation]:
    packing, order = stage.packing, stage.packing.order
    if isinstance(order, GrowLength):
        if order.lengths and order.lengths[-1] != packing.capacity:
            yield Violation(
                f"the rows of the last stage, packing.order.lengths={list(order.lengths)}, are not those of "
                f"packing.capacity={packing.capacity}",
                ("packing.order.lengths", "packing.capacity"),
                f"packing.capacity={order.lengths[-1]}",
            )
        stages = order.stages(packing.capacity)
        if order.fractions and len(order.fractions) != len(stages):
            yield Violation(
                f"packing.order.fractions has {len(order.fractions)} shares for the {len(stages)} stages of rows of "
                f"{', '.join(map(str, stages))} tokens",
                ("packing.order.fractions", "packing.capacity"),
                "give each stage a share, or leave packing.order.fractions out",
            )
        if packing.on_overflow == "error" and packing.name != "wrapped":
            yield Violation(
                "rows of the first stages are shorter than packing.capacity, and documents longer than they are an "
                "error",
                ("packing.on_overflow", "packing.order.name"),
                "packing.on_overflow=split, or packing=wrapped",
            )
