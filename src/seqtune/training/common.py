"""What every trainer adapter shares: a stage's settings for TRL, its metrics, its checkpoints, its data order."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from seqtune.errors import SeqtuneError
from seqtune.models.load import compute_device, resolve_dtype
from seqtune.report.events import Notice, StageStarted, Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from seqtune.config.axes import TrainSpec
    from seqtune.config.plan import Stage
    from seqtune.data.sources import Examples
    from seqtune.report.events import Watch
    from seqtune.report.run_folder import RunFolder

COMPLETE = "complete.json"
"""Written last into a checkpoint: a folder without it was cut short and is never read."""

CHECKPOINTING = (  # transformers 5.20 renamed it and warns about the old name
    "activation_checkpointing"
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"
)

RENAMED = {"mean_token_accuracy": "train/token_accuracy"}
NOT_METRICS = {"loss", "epoch", "step", "num_tokens", "num_input_tokens_seen", "total_flos"}


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
        "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.accumulate,
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


def check_length(run: StageRun, longest: int) -> None:
    """Refuse a sequence longer than the model has positions for.

    Raises:
        SeqtuneError: `longest` tokens are more than the model reads.
    """
    limit = getattr(run.model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise SeqtuneError(
            f"the longest sequence has {longest} tokens, but the model reads at most {limit}",
            where="packing.capacity",
            hint=f"packing.capacity={limit} with packing.on_overflow=truncate, split or drop",
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


def area_name(key: str) -> str:
    """TRL's flat metric key as `area/name`: `grad_norm` becomes `train/grad_norm`, `eval_loss` becomes `eval/loss`."""
    if key in RENAMED:
        return RENAMED[key]
    if "/" in key:
        return key
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


class Recorder(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Decides when a row is logged, the held-out loss measured and a checkpoint written; keeps all three in step.

    A row is also logged at every checkpoint and held-out measurement: the averages a row holds then never reach over a
    checkpoint, so a resumed run logs the same numbers.
    """

    def __init__(self, run: StageRun, heldout: bool) -> None:
        self.run, self.heldout = run, heldout
        self.tokens, self.earlier = 0, 0.0
        if run.checkpoint is not None:
            marker = read_marker(run.checkpoint)
            self.tokens, self.earlier = marker["tokens"], marker["seconds"]
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds the stage has trained, interruptions left out."""
        return self.earlier + time.monotonic() - self.began

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.monotonic()
        if state.is_world_process_zero:
            self.run.watch(StageStarted(self.run.stage.name, self.run.index, self.run.stages, state.max_steps))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        train, step = self.run.stage.train, state.global_step
        last = step >= state.max_steps
        control.should_evaluate = self.heldout and (last or (bool(train.eval_every) and step % train.eval_every == 0))
        control.should_save = not last and bool(train.save_every) and step % train.save_every == 0
        control.should_log = last or step % train.log_every == 0 or control.should_evaluate or control.should_save

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "train_runtime" in logs:  # the Trainer's closing summary; every number of it is in the rows
            return
        self.tokens = int(logs.get("num_tokens", self.tokens))
        if "loss" in logs and not math.isfinite(logs["loss"]):
            raise diverged(self.run, state.global_step, "the loss")
        if not state.is_world_process_zero:
            return
        row = {"stage": self.run.stage.name, "step": state.global_step}
        row |= {"loss": logs["loss"]} if "loss" in logs else {}
        row |= {"tokens": self.tokens, "seconds": round(self.seconds, 3)}
        row |= {area_name(key): value for key, value in logs.items() if key not in NOT_METRICS}
        self.run.folder.append_metrics(row)
        self.run.watch(Step(row, state.max_steps))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        barrier()  # every process has written its part of the checkpoint
        if not state.is_world_process_zero:
            return
        checkpoint = self.run.output / f"checkpoint-{state.global_step}"
        write_marker(self.run.folder, checkpoint, state.global_step, self.tokens, self.seconds)
        for old in complete_checkpoints(self.run.output)[: -self.run.stage.train.keep_checkpoints]:
            shutil.rmtree(old)


def barrier() -> None:
    """Wait for the other processes, if there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def write_marker(folder: RunFolder, checkpoint: Path, step: int, tokens: int, seconds: float) -> None:
    """Declare a checkpoint complete, and remember how much of the run's records belong to it."""
    marker = {"step": step, "tokens": tokens, "seconds": seconds, **folder.lengths()}
    folder.write_json(str((checkpoint / COMPLETE).relative_to(folder.path)), marker)


def read_marker(checkpoint: Path) -> dict[str, Any]:
    """What `write_marker` wrote."""
    marker: dict[str, Any] = json.loads((checkpoint / COMPLETE).read_text())
    return marker


def complete_checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a stage, oldest first."""
    found = [path for path in output.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def diverged(run: StageRun, step: int, what: str) -> SeqtuneError:
    """The error of a loss or gradient that is no longer a number."""
    kept = complete_checkpoints(run.output)
    saved = f"the checkpoint of step {kept[-1].name.rpartition('-')[2]} is kept" if kept else "no checkpoint was saved"
    return SeqtuneError(
        f"{what} is not a finite number at step {step} of stage '{run.stage.name}'; {saved}",
        where="train.learning_rate",
        hint="lower train.learning_rate, add train.warmup, lower train.max_grad_norm, or use model.dtype=float32",
    )


class Staged:
    """Mixed into a TRL trainer: records a stage, and stops before a gradient that is not finite reaches the weights."""

    run: StageRun

    def __init__(self, run: StageRun, *, heldout: bool = False, **kwargs: Any) -> None:
        self.run = run
        super().__init__(**kwargs)
        trainer: Any = self
        trainer.remove_callback(PrinterCallback)
        self.recorder = Recorder(run, heldout)
        trainer.add_callback(self.recorder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoints inside a run folder need no model card: the run's own report describes them."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        if not math.isfinite(norm):
            raise diverged(self.run, self.state.global_step + 1, "the gradient")  # type: ignore[attr-defined]
        return norm


class Measured(NamedTuple):
    """The objective on one micro-batch."""

    loss: Tensor
    """Sum over the micro-batch divided by the denominator that was asked for; scalar."""
    metrics: dict[str, Tensor]
    """Means over the micro-batch, keyed `area/name`."""
    weight: Tensor
    """What the means are over (trained tokens, or pairs)."""
    tokens: Tensor
    """Tokens the model read, padding left out."""
    aux: Tensor | None = None
    """Load-balancing loss of a mixture-of-experts model, already weighted."""


class Supervised(Staged):
    """Mixed into a TRL trainer whose rows are all known beforehand (SFT, preference, reward).

    The subclass says in `measure` what the objective is on a micro-batch. Its denominator is the count over the whole
    optimiser step, so a step does not depend on how it was cut into micro-batches and processes.
    """

    loss_is_scaled_for_ga = True  # the denominator spans the accumulated micro-batches: nothing is left to scale

    def __init__(self, run: StageRun, *, eval_rows: Dataset | None, **kwargs: Any) -> None:
        self.eval_rows = eval_rows
        self.objective = run.stage.objective.build()
        self._sums: dict[str, Tensor] = {}
        super().__init__(run, heldout=eval_rows is not None, **kwargs)
        self.trainer: Any = self
        self._tokens = self.recorder.tokens
        """Tokens read since the stage began, by all processes."""

    @abstractmethod
    def measure(self, model: Any, inputs: dict[str, Any], denominator: Tensor | float) -> Measured:
        """The objective on one micro-batch."""

    def step_loss(self, model: Any, inputs: dict[str, Any], denominator: Tensor | float) -> Tensor:
        """The loss to differentiate: this micro-batch's share of the step, made up for the averaging over processes."""
        measured = self.measure(model, inputs, denominator)
        self._add(measured)
        loss: Tensor = measured.loss * self.trainer.accelerator.num_processes
        if measured.aux is not None:
            loss = loss + measured.aux / self.trainer.current_gradient_accumulation_steps
        return loss

    def _add(self, measured: Measured) -> None:
        values = {key: value * measured.weight for key, value in measured.metrics.items()}
        for key, value in {**values, "weight": measured.weight, "tokens": measured.tokens}.items():
            self._sums[key] = self._sums.get(key, 0.0) + value.detach().double()

    def _drain(self) -> dict[str, float]:
        """Means since the last call over all processes; under `num_tokens`, tokens read since the stage began."""
        keys = sorted(self._sums)
        sums = self.trainer.accelerator.reduce(torch.stack([self._sums[key] for key in keys]), reduction="sum").tolist()
        self._sums = {}
        totals = dict(zip(keys, sums, strict=True))
        self._tokens += int(totals.pop("tokens"))
        weight = totals.pop("weight")
        means = {key: value / weight for key, value in totals.items()} if weight else {}
        return {**means, "num_tokens": self._tokens}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objective's metrics to a row of training."""
        if "loss" in logs:
            logs.update(self._drain())
        super().log(logs, start_time)  # type: ignore[misc]

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        args, rows = self.trainer.args, len(train_dataset or self.trainer.train_dataset)
        per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return Stream(rows, args.max_steps * per_step, self.run.stage.train.seed)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and metrics over all held-out rows: one exact mean, whatever the batches and processes.

        Draws no random number, so measuring more often does not change the run.
        """
        trainer, rows = self.trainer, self.eval_rows
        assert rows is not None  # the recorder asks for it only if there are rows
        size, rank, processes = trainer.args.train_batch_size, trainer.args.process_index, trainer.args.world_size
        batches = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        trainer.model.eval()
        total: dict[str, Tensor] = {}
        for turn in range(math.ceil(len(batches) / processes)):
            number = turn * processes + rank
            mine = number < len(batches)  # a process without a batch runs one in vain: sharded weights need all of them
            batch = rows.select(batches[number if mine else 0]).to_list()
            inputs = trainer._prepare_inputs(trainer.data_collator(batch))
            measured = self.measure(trainer.model, inputs, 1.0)
            values = {key: value * measured.weight for key, value in measured.metrics.items()}
            for key, value in {**values, "loss": measured.loss, "weight": measured.weight}.items():
                total[key] = total.get(key, 0.0) + value.double() * mine
        trainer.model.train()
        keys = sorted(total)
        sums = trainer.accelerator.reduce(torch.stack([total[key] for key in keys]), reduction="sum")
        means = dict(zip(keys, sums.tolist(), strict=True))
        weight = means.pop("weight")
        metrics = {heldout_name(key): value / weight for key, value in means.items()}
        trainer.log(dict(metrics))
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics


def heldout_name(key: str) -> str:
    """`loss` as `eval/loss`, `train/entropy` as `eval/entropy`, `rewards/margin` as `eval/rewards_margin`."""
    return f"eval/{key.removeprefix('train/').replace('/', '_')}"


def at_start(run: StageRun, eval_rows: Dataset | None) -> dict[str, Any]:
    """Whether the held-out rows are measured before the first step: not when going on from a checkpoint."""
    return {"eval_on_start": eval_rows is not None and run.checkpoint is None}
