"""Supervised fine-tuning of packed rows on TRL's `SFTTrainer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from seqtune.training.pack import packed_for

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor


@dataclass(frozen=True)
class PackedRows:
    """Collator that keeps packed rows apart: `[rows, T]`, positions restarting at every document.

    Backends that mask with a matrix pay for the square of a row, so rows are not joined into one as TRL does it. No
    attention mask is sent: transformers then takes the document boundaries from the positions alone. The padding at
    the end of a row is one more document.
    """

    pad_token_id: int

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`input_ids`, `labels` and `position_ids`, each `[rows, T]`, and the `tokens` of each row, `[rows]`.

        A document's first token is never a label: nothing before it predicts it.
        """
        shape = (len(examples), max(len(example["input_ids"]) for example in examples))
        input_ids = torch.full(shape, self.pad_token_id)
        labels = torch.full(shape, IGNORED)
        position_ids = torch.zeros(shape, dtype=torch.long)
        for row, example in enumerate(examples):
            length = len(example["input_ids"])
            input_ids[row, :length] = torch.tensor(example["input_ids"])
            labels[row, :length] = torch.tensor(example["labels"])
            lengths = [*example["seq_lengths"], shape[1] - length]
            position_ids[row] = torch.cat([torch.arange(n) for n in lengths])
        labels[position_ids == 0] = IGNORED
        tokens = torch.tensor([len(example["input_ids"]) for example in examples])
        return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids, "tokens": tokens}


class Sft(Supervised, SFTTrainer):  # type: ignore[misc]  # TRL is untyped
    """`SFTTrainer` whose loss is the plan's objective."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """`num_items_in_batch` is the trained tokens of the optimiser step, all micro-batches and processes."""
        return self.step_loss(model, inputs, num_items_in_batch)

    def measure(self, model: Any, inputs: dict[str, Any], denominator: Tensor | float) -> Measured:
        extra = {"output_router_logits": True} if self.aux_loss_enabled else {}
        given = {key: value for key, value in inputs.items() if key != "tokens"}
        outputs = model(**given, **extra, use_cache=False, fused_lm_head=True)
        mask = outputs.label_mask
        loss, metrics = self.objective(outputs.log_probs, mask, denominator=denominator)
        trained = mask.sum()
        with torch.no_grad():
            count = trained.clamp(min=1)
            metrics = {
                **metrics,
                "train/entropy": outputs.entropy.sum() / count,
                "train/token_accuracy": outputs.is_top1.sum() / count,
            }
        return Measured(
            loss,
            metrics,
            weight=trained,
            tokens=self._read(inputs),
            aux=self.router_aux_loss_coef * outputs.aux_loss if self.aux_loss_enabled else None,
        )

    def _read(self, inputs: dict[str, Any]) -> Tensor:
        if "tokens" in inputs:
            return inputs["tokens"].sum()  # type: ignore[no-any-return]  # a batch may hold more than tensors
        ids = inputs["input_ids"]  # from TRL's own collator (flash attention): one row without padding
        return ids.new_tensor(ids.numel())  # type: ignore[no-any-return]


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
    flash = "flash" in run.model.config._attn_implementation
    return Sft(
        run,
        eval_rows=heldout,
        model=run.model,
        args=SFTConfig(
            **training_arguments(run, steps=optimiser_steps(stage.train, len(train), stage.parallel.processes)),
            **at_start(run, heldout),
            packing=False,
            padding_free=flash,
            max_length=None,
        ),
        data_collator=None if flash else PackedRows(run.tokenizer.pad_token_id),
        train_dataset=train,
        processing_class=run.tokenizer,
        peft_config=stage.peft.build(),
    )
