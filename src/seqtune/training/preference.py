"""Preference optimisation (DPO) on TRL's `DPOTrainer`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from trl import DPOConfig, DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from seqtune.packing.pack import IGNORED
from seqtune.training.common import (
    Measured,
    StageRun,
    Supervised,
    at_start,
    optimiser_steps,
    training_arguments,
)
from seqtune.training.pairs import pairs

if TYPE_CHECKING:
    from torch import Tensor


class Preference(Supervised, DPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """`DPOTrainer` whose loss is the plan's objective on summed log-probs of the pair under model and reference."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset  # `pairs` has tokenised it; TRL would look for the text

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Tensor:
        # Every step takes the same number of pairs, so the step's count is known without asking the other processes.
        pairs_a_step = self.args.train_batch_size * self.current_gradient_accumulation_steps * self.args.world_size
        return self.step_loss(model, inputs, pairs_a_step)

    def measure(self, model: Any, inputs: dict[str, Any], denominator: Tensor | float) -> Measured:
        mask = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(mask == 0, IGNORED)
        given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}
        extra = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**given, **extra, use_cache=False, fused_lm_head=True)
        chosen, rejected = outputs.log_probs.sum(1).chunk(2)  # [B]: the batch is the chosen, then the rejected
        ref_chosen, ref_rejected = self._reference(given).chunk(2)
        loss, metrics = self.objective(chosen, rejected, ref_chosen, ref_rejected, denominator=denominator)
        with torch.no_grad():
            count = outputs.label_mask.sum().clamp(min=1)
            metrics = {
                **metrics,
                "logps/chosen": chosen.mean(),
                "logps/rejected": rejected.mean(),
                "train/entropy": outputs.entropy.sum() / count,
            }
        return Measured(
            loss,
            {key: value.detach() for key, value in metrics.items()},
            weight=torch.tensor(chosen.numel(), device=mask.device),
            tokens=inputs["attention_mask"].sum(),
            aux=self.router_aux_loss_coef * outputs.aux_loss if self.aux_loss_enabled else None,
        )

    @torch.no_grad()
    def _reference(self, given: dict[str, Any]) -> Tensor:
        """Log-probs of the completions under the frozen reference, `[2B]`: a copy, or the model without its adapter."""
        if self.ref_model is not None:
            reference = self.ref_model(**given, use_cache=False, fused_lm_head=True)
        else:
            unwrapped = self.accelerator.unwrap_model(self.model)
            with (
                use_adapter(unwrapped, adapter_name=None),
                disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            ):
                reference = self.model(**given, use_cache=False, fused_lm_head=True)
        return reference.log_probs.sum(1)  # type: ignore[no-any-return]


def trainer(run: StageRun) -> Preference:
    """The trainer of a preference stage. The reference is the model the stage starts from.

    Raises:
        SeqtuneError: There is nothing to train on, or a pair is longer than allowed.
    """
    stage = run.stage
    train, heldout = pairs(run)
    adapter = stage.peft.build()
    return Preference(
        run,
        eval_rows=heldout,
        model=run.model,
        ref_model=None if adapter is not None else copy.deepcopy(run.model).requires_grad_(False).eval(),
        args=DPOConfig(
            **training_arguments(run, steps=optimiser_steps(stage.train, len(train), stage.parallel.processes)),
            **at_start(run, heldout),
            max_length=None,
        ),
        train_dataset=train,
        processing_class=run.tokenizer,
        peft_config=adapter,
    )
