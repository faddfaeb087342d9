"""The same run by seqtune and by TRL, 20 optimiser steps each: the losses of every step and the final weights agree.

Both begin with the same weights and take the same text, settings and seeds; TRL tokenises, packs, pads and collates by
itself. Three things of TRL's are pinned: which rows a step takes (its sampler draws other random numbers), what it
samples (it is given seqtune's completions) and its attention, transformers' `sdpa`. On a CPU that keeps packed
documents apart because position ids restart, there is one row and no mask: what TRL's padding-free collator makes.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import policy_stage
import pytest
import tiny_plans
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer import grpo_trainer

from seqtune.data.sources import load as load_data
from seqtune.models.load import load_model, load_tokenizer
from seqtune.objectives.specs.dpo import Dpo
from seqtune.packing.specs import BestFit
from seqtune.report.run_folder import RunFolder
from seqtune.training import policy, preference, sft
from seqtune.training.rollouts import Rollouts, by_group, take
from seqtune.training.scorer import Scorer
from seqtune.training.stage import CHECKPOINTING, StageRun, Stream, stage_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from seqtune.config.plan import Stage

STEPS = 20
TRAIN = {
    "learning_rate": 1e-3,
    "batch_size": 4,
    "accumulate": 2,
    "max_steps": STEPS,
    "warmup": 4,
    "schedule": "cosine",
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,  # clips: the gradients of an untrained model are longer
    "seed": 3,
}
CLOSE = 1e-5


def run_of(folder: Path, one: Stage) -> StageRun:
    """A stage about to run, with its data."""
    made = RunFolder(folder)
    stage_folder(made, one.name).mkdir(parents=True)
    return StageRun(
        stage=one,
        index=0,
        stages=1,
        folder=made,
        watch=lambda event: None,
        model=load_model(one.model),
        tokenizer=load_tokenizer(one.model),
        examples=load_data(one.data),
        checkpoint=None,
    )


def settings(one: Stage, folder: Path) -> dict[str, Any]:
    """The stage for TRL, in TRL's own words."""
    train = one.train
    return {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.accumulate,
        "max_steps": train.max_steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": train.warmup,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        CHECKPOINTING: False,
        "seed": train.seed,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def in_order(kind: type, sampler: Callable[[Any], Any]) -> type:
    """TRL's trainer with other rows in its steps."""
    return type(kind.__name__, (kind,), {"_get_train_sampler": lambda self, dataset=None: sampler(self)})


def streamed(one: Stage) -> Callable[[Any], Stream]:
    """The rows seqtune takes in each step."""
    train = one.train
    return lambda made: Stream(len(made.train_dataset), STEPS * train.batch_size * train.accumulate, train.seed)


def trained(one: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train; the loss of every step, unrounded, and the weights at the end."""
    losses: list[float] = []
    step = one.training_step

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(*args, **kwargs)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(one, "training_step", watched)
    # With the default of 1e-8 a gradient that is nothing but rounding errors moves a weight by a full step.
    one.args.adam_epsilon = 1e-6
    one.train()
    micro = len(losses) // STEPS
    return np.reshape(losses, (STEPS, micro)).sum(1).tolist(), one.model.state_dict()


def assert_same_run(
    ours: tuple[list[float], dict[str, torch.Tensor]],
    theirs: tuple[list[float], dict[str, torch.Tensor]],
    start: dict[str, torch.Tensor],
    *,
    absolute: float = 0.0,
) -> None:
    """What `trained` returned of two runs agrees: every loss and every weight tensor (its norm) to 1e-5 of itself.

    Args:
        ours, theirs: Of the two.
        start: The weights they began with; every tensor moves at least a hundred times as far as the runs may differ.
        absolute: What losses may differ by whatever their size.
    """
    (our_losses, our_weights), (their_losses, their_weights) = ours, theirs
    assert len(our_losses) == len(their_losses) == STEPS
    assert our_losses == pytest.approx(their_losses, rel=CLOSE, abs=absolute)
    assert our_weights.keys() == their_weights.keys() == start.keys()
    for name, weight in their_weights.items():
        assert (weight - start[name]).norm() > 100 * CLOSE * weight.norm(), name
        assert (our_weights[name] - weight).norm() < CLOSE * weight.norm(), name


def documents_of(rows: Dataset) -> list[tuple[list[int], list[bool]]]:
    """The documents of packed rows: their ids, and which of them are trained."""
    found = []
    for row in rows:
        for document in sft.documents(row):
            document.mask[0] = False  # nothing of its document precedes it
            found.append((document.ids.tolist(), document.mask.tolist()))
    return sorted(found)


def test_sft_on_packed_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL `SFTTrainer` with `packing_strategy="bfd"` and `padding_free`.

    Both tokenise and pack for themselves and find the same documents and as many rows. Which of two equally full rows
    takes a document is a matter of taste, so both train on the rows that TRL packed.
    """
    rng = np.random.default_rng(0)
    rows = [
        {"prompt": f"{n} + {n + 1} = ", "completion": "".join(rng.choice(list("0123456789 +="), n + 1))}
        for n in rng.permutation(64).tolist()
    ]
    source = tmp_path / "sums.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(source), "format": "prompt_completion"}
    one = tiny_plans.stage("sft", source, packing=BestFit(capacity=96), data=tiny_plans.DataSpec(**data), train=TRAIN)
    run = run_of(tmp_path / "run", one)
    start = copy.deepcopy(run.model.state_dict())
    theirs = in_order(SFTTrainer, streamed(one))(
        model=copy.deepcopy(run.model),
        args=SFTConfig(
            **settings(one, tmp_path),
            packing=True,
            packing_strategy="bfd",
            padding_free=True,
            max_length=one.packing.capacity,
            completion_only_loss=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=run.tokenizer,
    )
    ours = sft.trainer(run)
    packed = theirs.train_dataset.map(lambda row: {"loss_mask": [label != -100 for label in row["labels"]]})
    assert documents_of(ours.train_dataset) == documents_of(packed)
    assert len(ours.train_dataset) == len(packed) > 2 * one.train.batch_size * one.train.accumulate
    assert max(map(len, packed["seq_lengths"])) > 2
    ours.train_dataset = packed
    assert_same_run(trained(ours, monkeypatch), trained(theirs, monkeypatch), start)


@pytest.mark.parametrize("budget", [None, 100])
def test_dpo_on_pairs(budget: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL `DPOTrainer`, which reads every prompt four times; seqtune also by a token budget, which changes nothing."""
    source = tiny_plans.write_data(tmp_path, rows=40)
    data = tiny_plans.DataSpec(path=str(source), format="preference")
    one = tiny_plans.stage(
        "dpo", source, data=data, objective=Dpo(beta=0.3), train={**TRAIN, "tokens_per_batch": budget}
    )
    run = run_of(tmp_path / "run", one)
    start = copy.deepcopy(run.model.state_dict())
    theirs = in_order(DPOTrainer, streamed(one))(
        model=copy.deepcopy(run.model),
        ref_model=copy.deepcopy(run.model),
        args=DPOConfig(**settings(one, tmp_path), beta=0.3, max_length=None),
        train_dataset=run.examples.train.select_columns(["prompt", "chosen", "rejected"]),
        processing_class=run.tokenizer,
    )
    ours = preference.trainer(run)
    assert_same_run(trained(ours, monkeypatch), trained(theirs, monkeypatch), start)


@pytest.mark.parametrize(
    ("objective", "level"),
    [
        ({"name": "gspo"}, "sequence"),
        ({"name": "gspo", "beta": 0.1}, "sequence"),
        ({"name": "grpo", "beta": 0.1, "kl_corrected": True, "epsilon_low": 0.01, "epsilon_high": 0.01}, "token"),
        ({"name": "gspo", "beta": 0.1, "kl_corrected": True}, "sequence"),
        ({"name": "gspo", "beta": 0.3, "ref_model_sync_steps": 3, "ref_model_mixup_alpha": 0.3}, "sequence"),
    ],
)
def test_policy_on_groups(
    objective: dict[str, Any], level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL `GRPOTrainer` with `importance_sampling_level` and `loss_type="grpo"`.

    Every rollout feeds two steps, so the ratio leaves 1 and is clipped. The loss is a mean of advantages
    that cancel within a group and rounds as one of them does: losses agree to a millionth of an advantage.
    """
    one = policy_stage.stage(
        objective={"group_size": 4, **objective},
        rollout={"max_new_tokens": 12, "updates": 2},
        reward={"pattern": r"(?s)[\x00-\x7f].*"},  # about half of an untrained byte model's completions match
        train={**TRAIN, "batch_size": 8},
        model={"hidden_size": 32, "layers": 2},
    )
    run = policy_stage.stage_run(tmp_path / "run", one)
    start = copy.deepcopy(run.model.state_dict())
    untouched = copy.deepcopy(run.model)
    ours = policy.trainer(run)
    updates, group = one.rollout.updates, one.objective.group_size
    micro = updates * one.train.accumulate  # micro-batches a rollout feeds
    rollouts = Rollouts(
        len(run.examples.train),
        rollouts=STEPS // updates,
        prompts=micro * one.train.batch_size // group,
        group_size=group,
        repeats=micro,
        seed=one.train.seed,
    )
    completions: list[list[list[int]]] = []
    generate = ours._generate_single_turn

    def kept(*args: Any) -> tuple[list[list[int]], None]:
        sampled, logps = generate(*args)
        completions.append(sampled)
        return sampled, logps

    monkeypatch.setattr(ours, "_generate_single_turn", kept)
    finished = trained(ours, monkeypatch)
    assert {len(ids) for rollout in completions for ids in rollout} > {12}  # some ended by themselves

    # TRL reads the reference from the folder or hub name the model came from; this one came from neither.
    monkeypatch.setattr(grpo_trainer, "create_model_from_path", lambda *args, **given: copy.deepcopy(untouched))
    theirs = in_order(GRPOTrainer, lambda made: rollouts)(
        model=untouched,
        reward_funcs=[Scorer(run)],
        args=GRPOConfig(
            **settings(one, tmp_path),
            num_generations=group,
            steps_per_generation=micro,
            max_completion_length=12,
            importance_sampling_level=level,
            loss_type="grpo",
            epsilon=one.objective.epsilon_low,
            epsilon_high=one.objective.epsilon_high,
            beta=one.objective.beta,
            use_bias_correction_kl=one.objective.kl_corrected,
            sync_ref_model=one.objective.ref_model_sync_steps is not None,
            ref_model_sync_steps=one.objective.ref_model_sync_steps or 1,
            ref_model_mixup_alpha=one.objective.ref_model_mixup_alpha,
        ),
        train_dataset=run.examples.train,
        processing_class=run.tokenizer,
    )
    replayed = iter(completions)
    monkeypatch.setattr(theirs, "_generate_single_turn", lambda *args: (next(replayed), None))

    def shuffled(batch: dict[str, Any]) -> dict[str, Any]:
        order = by_group(0, micro * one.train.batch_size, group, (one.train.seed, theirs._step // micro))
        return {**batch, **take(batch, order)}

    monkeypatch.setattr(grpo_trainer, "shuffle_sequence_dict", shuffled)
    assert_same_run(finished, trained(theirs, monkeypatch), start, absolute=1e-6)
    assert max(row["policy/clip_high"] for row in run.folder.metrics()) > 0
