"""The methods of TRL and transformers that are overridden or relied on, as they are in the versions pinned.

When one of these fails after an upgrade, read the new source before changing the test: an override that no longer
overrides anything changes what is trained without an error.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import Trainer
from trl import DPOTrainer

from seqtune.training.forest import through
from seqtune.training.preference import Preference
from seqtune.training.reward import Reward
from seqtune.training.sft import Sft
from seqtune.training.staged import Staged
from seqtune.training.supervised import Supervised

OVERRIDDEN = [
    (DPOTrainer, Preference, "_prepare_dataset", ["dataset", "processing_class", "args", "dataset_name"]),
    (Trainer, Staged, "training_step", ["model", "inputs", "num_items_in_batch"]),
    (Trainer, Staged, "floating_point_ops", ["inputs"]),
    (Trainer, Staged, "_get_num_items_in_batch", ["batch_samples", "device"]),
    (Trainer, Supervised, "_get_train_sampler", ["train_dataset"]),
    (Trainer, Supervised, "evaluate", ["eval_dataset", "ignore_keys", "metric_key_prefix"]),
    (Trainer, Staged, "log", ["logs", "start_time"]),
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
    names = ("_get_train_sampler", "training_step", "evaluate", "_get_grad_norm", "create_model_card", "log")
    for name in names:
        assert getattr(trainer, name).__module__.startswith("seqtune.training."), name


def source(owner: Any) -> str:
    return " ".join(inspect.getsource(owner).split())


def test_the_loop_calls_what_is_overridden() -> None:
    assert "self._get_grad_norm(model, grad_norm=grad_norm)" in source(Trainer._run_epoch)
    assert source(Trainer._run_epoch).index("self._get_grad_norm(") < source(Trainer._run_epoch).index(
        "self.optimizer.step()"
    )
    assert "self._evaluate(" in source(Trainer._maybe_log_save_evaluate)
    assert "self.evaluate(" in source(Trainer._evaluate)
    assert "self.training_step(model, inputs, num_items_in_batch)" in source(Trainer._run_epoch)
    assert "self.floating_point_ops(inputs)" in source(Trainer._run_epoch)
    assert "self._get_num_items_in_batch(batch_samples, device)" in source(Trainer.get_batch_samples)


def test_work_runs_as_the_forward_pass_of_the_wrapper() -> None:
    """`_ForwardRedirection` is private to TRL: the wrapper's hooks run, and the model's own forward comes back."""
    inner = torch.nn.Linear(2, 3)
    outer = OneInside(inner)
    seen: list[str] = []
    outer.register_forward_pre_hook(lambda *args: seen.append("before"))
    outer.register_forward_hook(lambda *args: seen.append("after"))
    forward = inner.forward
    found = through(outer, inner, lambda: seen.append("work") or inner(torch.ones(2)))
    assert seen == ["before", "work", "after"]
    assert found.shape == (3,)
    assert inner.forward == forward


class OneInside(torch.nn.Module):
    """As accelerate wraps a model: its forward is that of the one inside."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        return self.inner(*args)


def test_rows_are_written_before_a_checkpoint_that_counts_them() -> None:
    body = source(Trainer._maybe_log_save_evaluate)
    assert body.index("self.log(") < body.index("self._evaluate(") < body.index("self._save_checkpoint(")
    assert body.index("self._save_checkpoint(") < body.index("callback_handler.on_save(")
