"""Supervised fine-tuning of packed rows on TRL's `SFTTrainer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from trl import SFTConfig, SFTTrainer

from seqtune.packing.pack import IGNORED
from seqtune.training.common import (
    Measured,
    StageRun,
    Supervised,
    at_start,
    check_length,
    optimiser_steps,
    training_arguments,
)
from seqtune.training.forest import MicroBatch, Scored, token_scores
from seqtune.training.pack import packed_for

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor


class Sft(Supervised, SFTTrainer):  # type: ignore[misc]  # TRL is untyped
    """`SFTTrainer` whose rows are forests of documents and whose loss is the plan's objective."""

    shared = False

    def size(self, row: dict[str, Any]) -> int:
        return len(row["input_ids"])

    def sequences(self, rows: list[dict[str, Any]]) -> list[Scored]:
        return [document for row in rows for document in documents(row)]

    def count(self, batch: MicroBatch) -> float:
        return float(len(batch.targets))

    def measure(self, model: Any, batch: MicroBatch, denominator: Tensor | float) -> Measured:
        scores = token_scores(
            model, self.accelerator.unwrap_model(model), batch, entropy=True, aux=self.aux_loss_enabled
        )
        loss, metrics = self.objective(scores.logps, torch.ones_like(scores.logps), denominator=denominator)
        trained = len(batch.targets)
        with torch.no_grad():
            metrics = {
                **metrics,
                "train/entropy": scores.entropy.sum() / max(trained, 1),  # type: ignore[union-attr]  # asked for
                "train/token_accuracy": scores.is_top1.sum() / max(trained, 1),
            }
        return Measured(
            loss,
            metrics,
            weight=trained,
            tokens=batch.tokens,
            aux=self.router_aux_loss_coef * scores.aux if scores.aux is not None else None,
        )


def documents(row: dict[str, Any]) -> list[Scored]:
    """The documents of a packed row, each with its trained tokens."""
    ids = np.asarray(row["input_ids"], dtype=np.int64)
    trained = np.asarray(row["labels"], dtype=np.int64) != IGNORED
    ends = np.cumsum(row["seq_lengths"])[:-1]
    return [Scored(*parts) for parts in zip(np.split(ids, ends), np.split(trained, ends), strict=True)]


def rows(run: StageRun, examples: Dataset, *, heldout: bool) -> Dataset:
    """Examples as packed rows: `input_ids`, `labels` and `seq_lengths`.

    Raises:
        SeqtuneError: The examples cannot be trained on, or a document is longer than a row or than the model reads.
    """
    spec = run.stage.packing
    packed = packed_for(run.stage, examples, run.tokenizer, heldout=heldout)
    check_length(run, max(max(lengths) for lengths in packed.dataset["seq_lengths"]))
    counts = packed.counts
    lost = {name: counts[name] for name in ("skipped", "dropped", "truncated", "split") if name in counts}
    run.notice(
        f"{'held-out' if heldout else 'training'} data: {counts['documents']} documents in {counts['rows']} rows "
        f"of {spec.capacity} tokens, {counts['fill']:.1%} full{f'; {lost}' if lost else ''}"
    )
    return packed.dataset


def trainer(run: StageRun) -> Sft:
    """The trainer of an SFT stage.

    Raises:
        SeqtuneError: There is nothing to train on, or rows are longer than the model can read.
    """
    stage = run.stage
    train = rows(run, run.examples.train, heldout=False)
    heldout = rows(run, run.examples.heldout, heldout=True) if len(run.examples.heldout) else None
    return Sft(
        run,
        eval_rows=heldout,
        model=run.model,
        args=SFTConfig(
            **training_arguments(run, steps=optimiser_steps(stage.train, len(train), stage.parallel.processes)),
            **at_start(run, heldout),
            packing=False,
            max_length=None,
        ),
        train_dataset=train,
        processing_class=run.tokenizer,
        peft_config=stage.peft.build(),
    )
