"""Supervised fine-tuning of packed rows on TRL's `SFTTrainer`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer

from seqtune.config.mixture import MixtureSpec
from seqtune.training.audit import Proof, mask_audit
from seqtune.training.feed import Ordered, StreamSteps, open_stream, ordered, stream_steps, take
from seqtune.training.forest import MicroBatch, Scored, token_scores
from seqtune.training.pack import packed_for
from seqtune.training.stage import StageRun, at_start, check_length, is_main, training_arguments
from seqtune.training.staged import Measured
from seqtune.training.supervised import StepRows, Supervised

if TYPE_CHECKING:
    from torch import Tensor

STREAM = "stream.json"
"""In a checkpoint: where the stream of documents stood."""


class Sft(Supervised, SFTTrainer):  # type: ignore[misc]  # TRL is untyped
    """`SFTTrainer` whose rows are forests of documents and whose loss is the plan's objective.

    Args:
        feed: Which rows of the data set each step takes, or a stream that takes the place of the data set.
    """

    shared = False

    def __init__(self, run: StageRun, *, feed: Ordered | StreamSteps, **kwargs: Any) -> None:
        self.feed = feed
        super().__init__(run, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One batch is this process's part of an optimiser step; accelerate would cut it up once more."""
        if isinstance(self.feed, StreamSteps):
            return DataLoader(self.feed, batch_size=1, collate_fn=lambda batches: StepRows(batches[0]))
        return DataLoader(self.train_dataset, batch_sampler=self.feed, collate_fn=StepRows)

    def audit(self) -> list[Proof]:
        packing = self.run.stage.packing
        cuts = packing.cut(np.zeros(0, np.int64)) is not None or packing.on_overflow in ("split", "truncate")
        rows = [self.sequences([row]) for row in self.units()]
        return mask_audit(rows, self.run.tokenizer.eos_token_id, whole=not cuts)

    def micro_batches(self, inputs: StepRows) -> list[Any]:
        if inputs.rows:
            if isinstance(self.feed, StreamSteps):  # the others were checked when all of them were there
                check_length(self.run, max(max(row["seq_lengths"]) for row in inputs.rows))
            return super().micro_batches(inputs)
        row = self.train_dataset[0]  # a short step has no row for this process, which still takes part in the sums
        return super().micro_batches(StepRows([{**row, "loss_mask": [0] * len(row["input_ids"])}]))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if isinstance(self.feed, StreamSteps) and is_main():
            place = self.run.output / f"checkpoint-{self.state.global_step}" / STREAM
            self.run.folder.write_json(str(place.relative_to(self.run.folder.path)), self.feed.state())

    def size(self, row: dict[str, Any]) -> int:
        return len(row["input_ids"])

    def sequences(self, rows: list[dict[str, Any]]) -> list[Scored]:
        return [document for row in rows for document in documents(row)]

    @property
    def by_document(self) -> bool:
        """Whether every document weighs the same, not every token."""
        return self.run.stage.objective.denominator_unit == "sequences"

    def count(self, batch: MicroBatch) -> float:
        return float((batch.index >= 0).any(1).sum()) if self.by_document else float(len(batch.targets))

    def measure(self, model: Any, batch: MicroBatch, denominator: Tensor | float) -> Measured:
        inner = self.accelerator.unwrap_model(model)
        uniform = not self.by_document  # the same weight for every token
        scores = token_scores(model, inner, batch, entropy=True, aux=self.aux_loss_enabled, uniform=uniform)
        logps = batch.by_sequence(scores.logps) if self.by_document else scores.logps
        mask = batch.index >= 0 if self.by_document else torch.ones_like(logps)
        loss, metrics = self.objective(logps, mask, denominator=denominator)
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
    trained = np.asarray(row["loss_mask"], dtype=np.bool_)
    ends = np.cumsum(row["seq_lengths"])[:-1]
    return [Scored(*parts) for parts in zip(np.split(ids, ends), np.split(trained, ends), strict=True)]


def rows(run: StageRun, examples: Dataset, *, heldout: bool) -> Dataset:
    """Examples as packed rows: `input_ids`, `loss_mask` and `seq_lengths`.

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
    heldout = rows(run, run.examples.heldout, heldout=True) if len(run.examples.heldout) else None
    if isinstance(stage.data, MixtureSpec):
        state = json.loads((run.checkpoint / STREAM).read_text()) if run.checkpoint else None
        feed: Ordered | StreamSteps = stream_steps(run, state)
        # What the checks before a run look at; training itself reads the stream.
        train = Dataset.from_list(take(open_stream(run), stage.train.batch_size * stage.train.accumulate))
    else:
        train = rows(run, run.examples.train, heldout=False)
        feed = ordered(run, train)
    return Sft(
        run,
        feed=feed,
        eval_rows=heldout,
        model=run.model,
        args=SFTConfig(
            **training_arguments(run, steps=len(feed)),
            **at_start(run, heldout),
            packing=False,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},  # which would write a copy of every row with labels
        ),
        train_dataset=train,
        processing_class=run.tokenizer,
        peft_config=stage.peft.build(),
    )
