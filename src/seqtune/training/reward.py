"""Reward models on TRL's `RewardTrainer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification, set_seed
from trl import RewardConfig, RewardTrainer

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
    from transformers import PreTrainedModel


class Reward(Supervised, RewardTrainer):  # type: ignore[misc]  # TRL is untyped
    """`RewardTrainer` whose loss is the plan's objective on the scores of the pair."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        pairs_a_step = self.args.train_batch_size * self.current_gradient_accumulation_steps * self.args.world_size
        return self.step_loss(model, inputs, pairs_a_step)

    def measure(self, model: Any, inputs: dict[str, Any], denominator: Tensor | float) -> Measured:
        chosen, rejected = model(**inputs, use_cache=False).logits.squeeze(-1).chunk(2)  # [B]
        loss, metrics = self.objective(chosen, rejected, denominator=denominator)
        return Measured(
            loss,
            metrics,
            weight=torch.tensor(chosen.numel(), device=chosen.device),
            tokens=inputs["attention_mask"].sum(),
        )


def scorer(model: PreTrainedModel, *, pad_token_id: int, seed: int) -> PreTrainedModel:
    """A language model's body under a new head with one score a sequence, read at its last token.

    Args:
        model: A causal language model; its body is taken over, its LM head left out.
        pad_token_id: Marks the padding after the last token.
        seed: Of the head's random weights.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    config.num_labels, config.pad_token_id = 1, pad_token_id
    config._attn_implementation = model.config._attn_implementation
    set_seed(seed)
    made = AutoModelForSequenceClassification.from_config(config, dtype=model.dtype)
    made.name_or_path = model.name_or_path
    body = made.base_model_prefix
    getattr(made, body).load_state_dict(getattr(model, body).state_dict())
    return made.to(model.device)


def trainer(run: StageRun) -> Reward:
    """The trainer of a reward stage.

    Raises:
        SeqtuneError: There is nothing to train on, or a pair is longer than allowed.
    """
    stage = run.stage
    train, heldout = pairs(run)
    train = train.map(whole, remove_columns="prompt_ids")
    heldout = heldout.map(whole, remove_columns="prompt_ids") if heldout is not None else None
    adapter = stage.peft.build()
    if adapter is not None:
        adapter.task_type, adapter.modules_to_save = "SEQ_CLS", ["score"]
    return Reward(
        run,
        eval_rows=heldout,
        model=scorer(run.model, pad_token_id=run.tokenizer.pad_token_id, seed=stage.train.seed),
        args=RewardConfig(
            **training_arguments(run, steps=optimiser_steps(stage.train, len(train), stage.parallel.processes)),
            **at_start(run, heldout),
            max_length=None,
        ),
        train_dataset=train,
        processing_class=run.tokenizer,
        peft_config=adapter,
    )


def whole(row: dict[str, list[int]]) -> dict[str, list[int]]:
    """The pair with the prompt in front of both completions."""
    return {name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")}
