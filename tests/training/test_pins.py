"""The methods of TRL and transformers that are overridden or relied on, as they are in the versions pinned.

When one of these fails after an upgrade, read the new source before changing the test: an override that no longer
overrides anything changes what is trained without an error.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import transformers
from transformers import Trainer
from trl import DPOTrainer, RewardTrainer, SFTTrainer

from seqtune.training.common import Staged, Supervised
from seqtune.training.preference import Preference
from seqtune.training.reward import Reward
from seqtune.training.sft import Sft

OVERRIDDEN = [
    (SFTTrainer, Sft, "compute_loss", ["model", "inputs", "return_outputs", "num_items_in_batch"]),
    (RewardTrainer, Reward, "compute_loss", ["model", "inputs", "return_outputs", "num_items_in_batch"]),
    (DPOTrainer, Preference, "_compute_loss", ["model", "inputs", "return_outputs"]),
    (DPOTrainer, Preference, "_prepare_dataset", ["dataset", "processing_class", "args", "dataset_name"]),
    (Trainer, Supervised, "_get_train_sampler", ["train_dataset"]),
    (Trainer, Supervised, "evaluate", ["eval_dataset", "ignore_keys", "metric_key_prefix"]),
    (Trainer, Supervised, "log", ["logs", "start_time"]),
    (Trainer, Staged, "_get_grad_norm", ["model", "grad_norm"]),
]


@pytest.mark.parametrize(("theirs", "ours", "name", "arguments"), OVERRIDDEN)
def test_an_override_has_the_signature_of_what_it_overrides(
    theirs: type, ours: type, name: str, arguments: list[str]
) -> None:
    for owner in (theirs, ours):
        assert list(inspect.signature(getattr(owner, name)).parameters) == ["self", *arguments]


@pytest.mark.parametrize("trainer", [Sft, Preference, Reward])
def test_the_overrides_come_before_trl(trainer: type) -> None:
    for name in ("_get_train_sampler", "evaluate", "_get_grad_norm", "create_model_card", "log"):
        assert getattr(trainer, name).__module__ == "seqtune.training.common"
    assert trainer.loss_is_scaled_for_ga is True


def source(owner: Any) -> str:
    return " ".join(inspect.getsource(owner).split())


def test_the_loop_calls_what_is_overridden() -> None:
    assert "self._get_grad_norm(model, grad_norm=grad_norm)" in source(Trainer._run_epoch)
    assert source(Trainer._run_epoch).index("self._get_grad_norm(") < source(Trainer._run_epoch).index(
        "self.optimizer.step()"
    )
    assert "self._evaluate(" in source(Trainer._maybe_log_save_evaluate)
    assert "self.evaluate(" in source(Trainer._evaluate)
    assert "return self._compute_loss(model, inputs, return_outputs)" in source(DPOTrainer.compute_loss)


def test_rows_are_written_before_a_checkpoint_that_counts_them() -> None:
    body = source(Trainer._maybe_log_save_evaluate)
    assert body.index("self.log(") < body.index("self._evaluate(") < body.index("self._save_checkpoint(")
    assert body.index("self._save_checkpoint(") < body.index("callback_handler.on_save(")


def test_the_count_of_trained_tokens_spans_micro_batches_and_processes() -> None:
    body = source(Trainer._get_num_items_in_batch)
    assert 'batch["labels"][..., 1:]' in body
    assert "self.accelerator.gather(num_items_in_batch.to(device)).sum()" in body


def test_trl_keeps_the_columns_of_packed_rows() -> None:
    assert '["input_ids", "labels", "seq_lengths"]' in source(SFTTrainer._set_signature_columns_if_needed)


def test_the_loss_scaling_attribute_is_known() -> None:
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 19):
        pytest.skip("TRL translates it for this version of transformers")
    assert "self.loss_is_scaled_for_ga" in source(Trainer.training_step)
