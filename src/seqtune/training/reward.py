"""Reward models on TRL's `RewardTrainer`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, set_seed
from trl import RewardConfig, RewardTrainer

from seqtune.training.forest import MicroBatch, body, through
from seqtune.training.pairs import pair_tokens, pairs, sequences
from seqtune.training.stage import StageRun, at_start, optimiser_steps, training_arguments
from seqtune.training.staged import Measured
from seqtune.training.supervised import Supervised

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from seqtune.training.forest import Scored


class Reward(Supervised, RewardTrainer):  # type: ignore[misc]  # TRL is untyped
    """`RewardTrainer` whose loss is the plan's objective on the scores of the pair."""

    shared = True

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # `pairs` has tokenised it; TRL would look for the text

    def size(self, row: dict[str, Any]) -> int:
        return pair_tokens(row)

    def sequences(self, rows: list[dict[str, Any]]) -> list[Scored]:
        return sequences(rows)

    def count(self, batch: MicroBatch) -> float:
        return len(batch.flat.rows) / 2

    def measure(self, model: Any, batch: MicroBatch, denominator: Tensor | float) -> Measured:
        inner = self.accelerator.unwrap_model(model)
        rewards: Tensor = through(model, inner, partial(_rewards, inner, batch))
        chosen, rejected = rewards.chunk(2)  # [B]: the chosen come first
        loss, metrics = self.objective(chosen, rejected, denominator=denominator)
        return Measured(loss, metrics, weight=chosen.numel(), tokens=batch.tokens)

    def values(self, batch: MicroBatch) -> Tensor:
        """[B, L] the score after each token that is followed by one."""
        model = body(self.model)
        hidden = model.base_model(**batch.inputs).last_hidden_state[0]
        return batch.by_sequence(model.score(hidden[batch.predictors]).squeeze(-1))

    def plain_values(self, model: Any, sequences: list[Scored]) -> Tensor:
        ids = [torch.from_numpy(sequence.ids)[None].to(self.accelerator.device) for sequence in sequences]
        hidden = [model.base_model(input_ids=one, use_cache=False).last_hidden_state[0, :-1] for one in ids]
        return pad_sequence([model.score(one).squeeze(-1) for one in hidden], batch_first=True)


def _rewards(inner: Any, batch: MicroBatch) -> Tensor:
    """[2B] the score of each sequence, read at its last token."""
    model = body(inner)
    hidden = model.base_model(**batch.inputs).last_hidden_state[0]  # [T, H]
    rewards: Tensor = model.score(hidden[batch.last_tokens()]).squeeze(-1)
    return rewards


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
