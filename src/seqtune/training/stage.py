"""A stage about to run: what it is trained from, its settings for TRL, the order of its rows."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import TrainingArguments

from seqtune.errors import SeqtuneError
from seqtune.models.load import compute_device, positions, resolve_dtype
from seqtune.report.events import Notice

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from seqtune.config.axes import TrainSpec
    from seqtune.config.plan import Stage
    from seqtune.data.sources import Examples
    from seqtune.report.events import Watch
    from seqtune.report.run_folder import RunFolder


CHECKPOINTING = (  # transformers 5.20 renamed it and warns about the old name
    "activation_checkpointing"
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"
)


@dataclass(frozen=True)
class StageRun:
    """One stage about to run in this process (one of several under a launcher)."""

    stage: Stage
    index: int
    """Position among the stages of the plan, from 0."""
    stages: int
    """Stages of the plan."""
    folder: RunFolder
    watch: Watch
    """Told about every event; only the first process of a run calls it."""
    model: PreTrainedModel
    """The weights the stage starts from."""
    tokenizer: PreTrainedTokenizerBase
    examples: Examples
    checkpoint: Path | None
    """A complete checkpoint to go on from; None starts at the first step."""

    @property
    def output(self) -> Path:
        """Where the checkpoints of the stage lie."""
        return stage_folder(self.folder, self.stage.name)

    def notice(self, text: str) -> None:
        """Tell the user something, once however many processes train."""
        if is_main():
            self.watch(Notice(text))


def is_main() -> bool:
    """Whether this process writes the run's files: the first under a launcher, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def barrier() -> None:
    """Wait for the other processes, if there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def stage_folder(folder: RunFolder, stage: str) -> Path:
    """`checkpoints/<stage>` of a run."""
    return folder.path / "checkpoints" / stage


def optimiser_steps(train: TrainSpec, rows: int, processes: int) -> int:
    """Steps a stage takes: `max_steps`, or enough for `epochs` passes when every step takes the same number of rows."""
    if train.max_steps is not None:
        return train.max_steps
    return max(1, math.ceil(train.epochs * rows / (train.batch_size * train.accumulate * processes)))


def training_arguments(run: StageRun, *, steps: int) -> dict[str, Any]:
    """Keyword arguments for any TRL configuration class that follow from the plan.

    Logging, evaluation and saving are decided by `Recorder`, so their strategies are off here.
    """
    train, device = run.stage.train, compute_device()
    dtype = resolve_dtype(run.stage.model.dtype, device)
    return {
        "output_dir": str(run.output),
        # One batch of the Trainer is one optimiser step; `Staged` cuts it into micro-batches.
        "per_device_train_batch_size": train.batch_size * train.accumulate,
        "gradient_accumulation_steps": 1,
        "remove_unused_columns": False,
        "max_steps": steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": train.warmup,
        "weight_decay": train.weight_decay,
        "adam_beta1": train.adam_beta1,
        "adam_beta2": train.adam_beta2,
        "max_grad_norm": train.max_grad_norm,
        CHECKPOINTING: train.gradient_checkpointing,
        "seed": train.seed,
        "data_seed": train.seed,
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "use_cpu": device.type == "cpu",
        "average_tokens_across_devices": True,
        "logging_nan_inf_filter": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "ddp_backend": "gloo" if device.type == "cpu" and run.stage.parallel.processes > 1 else None,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": device.type != "cpu",
        **run.stage.parallel.build(),
    }


def at_start(run: StageRun, eval_rows: Dataset | None) -> dict[str, Any]:
    """Whether the held-out rows are measured before the first step: not when going on from a checkpoint."""
    return {"eval_on_start": eval_rows is not None and run.checkpoint is None}


def check_length(run: StageRun, longest: int) -> None:
    """Refuse a sequence longer than the model has positions for.

    Raises:
        SeqtuneError: `longest` tokens are more than the model reads.
    """
    limit = positions(run.model)
    if limit is not None and longest > limit:
        raise SeqtuneError(
            f"the longest sequence has {longest} tokens, but the model reads at most {limit}",
            where="packing.capacity",
            hint=f"packing.capacity={limit} with packing.on_overflow=truncate, split or drop",
        )


def check_room(run: StageRun, prompt: int) -> None:
    """Refuse prompts whose completions may go on beyond the model's positions.

    Args:
        run: Of a stage that samples.
        prompt: Tokens of the longest prompt.

    Raises:
        SeqtuneError: It and `rollout.max_new_tokens` are more than the model reads.
    """
    limit, more = positions(run.model), run.stage.rollout.max_new_tokens  # type: ignore[union-attr]  # it samples
    if limit is not None and prompt + more > limit:
        shorter = f"rollout.max_new_tokens={limit - prompt}, or " if prompt < limit else ""
        raise SeqtuneError(
            f"the longest prompt has {prompt} tokens and its completion up to {more} more, but the model reads at most "
            f"{limit}",
            where="rollout.max_new_tokens",
            hint=f"{shorter}leave so long a prompt out of the data",
        )


class Stream(Sampler[int]):
    """Row numbers as an endless chain of seeded permutations, cut after `total`.

    Every optimiser step then takes the same number of rows, at the end of an epoch too, and which rows it takes
    depends on the seed alone: not on the number of processes, the micro-batch or where a run was resumed.
    """

    def __init__(self, rows: int, total: int, seed: int) -> None:
        self.rows, self.total, self.seed = rows, total, seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        for start in range(0, self.total, self.rows):
            order = np.random.default_rng((self.seed, start // self.rows)).permutation(self.rows)
            yield from order[: self.total - start].tolist()
