"""What every trainer adapter shares: a stage's settings for TRL, its metrics, its checkpoints, its data order."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from seqtune.errors import SeqtuneError
from seqtune.models.forest import refusal, use_forest
from seqtune.models.load import compute_device, resolve_dtype
from seqtune.report.events import Notice, StageStarted, Step
from seqtune.training.forest import MicroBatch, Scored, Tokens, Unit, lay_out, split, token_scores
from seqtune.training.proofs import Proof, mask_audit

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


class Measured(NamedTuple):
    """The objective on one micro-batch."""

    loss: Tensor
    """Sum over the micro-batch divided by the denominator that was asked for; scalar."""
    metrics: dict[str, Tensor]
    """Means over the micro-batch, keyed `area/name`."""
    weight: Tensor | int
    """What the means are over (trained tokens, pairs or completions)."""
    tokens: Tokens
    aux: Tensor | None = None
    """Load-balancing loss of a mixture-of-experts model, already weighted."""


class Staged:
    """Mixed into a TRL trainer: one batch of the Trainer is one optimiser step, and is cut into micro-batches here.

    The subclass lays the step out in `micro_batches` and says in `measure` what the objective is on each. The
    denominator is the count over the whole step, so a step does not depend on how it was cut into micro-batches and
    processes. A gradient that is not finite stops the run before it reaches the weights.
    """

    run: StageRun
    trainer: Any
    """This object as the TRL trainer it is mixed into."""
    shared: bool
    """Whether sequences of a micro-batch share their beginnings."""

    def __init__(self, run: StageRun, *, heldout: bool = False, **kwargs: Any) -> None:
        self.run = run
        self.objective = run.stage.objective.build()
        self._sums: dict[str, Tensor | float] = {}
        self.plain_attention: str = kwargs["model"].config._attn_implementation
        """What the model attends with outside forests, when it generates."""
        fault = refusal(kwargs["model"].config, shared=self.shared)
        if fault is not None:
            raise SeqtuneError(f"this model cannot be trained on segment forests: {fault}", "model.name")
        for model in (kwargs["model"], kwargs.get("ref_model")):
            if model is not None:
                self.attention = use_forest(model, run.stage.model.attention)
        self.trainer = self
        super().__init__(**kwargs)
        self.trainer.remove_callback(PrinterCallback)
        self.recorder = Recorder(run, heldout)
        self.trainer.add_callback(self.recorder)
        because: dict[str, list[str]] = {}
        for name, reason in self.attention.reasons.items():
            because.setdefault(reason, []).append(name)
        passed_over = "".join(f"; not {', '.join(names)}: {reason}" for reason, names in because.items())
        run.notice(f"attention over segment forests: {self.attention.name}{passed_over}")
        self._tokens = self.recorder.tokens
        """Tokens of the sequences trained on since the stage began, by all processes."""

    @abstractmethod
    def micro_batches(self, inputs: Any) -> list[Any]:
        """This process's part of an optimiser step, at least one."""

    @abstractmethod
    def count(self, batch: Any) -> float:
        """What a micro-batch adds to the denominator of the step."""

    @abstractmethod
    def measure(self, model: Any, batch: Any, denominator: Tensor | float) -> Measured:
        """The objective on one micro-batch."""

    # What `proofs` asks of a trainer.

    @abstractmethod
    def units(self) -> list[Any]:
        """What an optimiser step of this process is cut into: its rows, here of a first step."""

    @abstractmethod
    def lay(self, units: list[Any]) -> Any:
        """Units as one micro-batch."""

    @abstractmethod
    def sample(self, count: int) -> list[Scored]:
        """Up to `count` sequences of the kind the stage trains on."""

    def audit(self) -> list[Proof]:
        """Checks of which tokens are trained; none where completions are yet to be sampled."""
        return []

    def values(self, batch: MicroBatch) -> Tensor:
        """[B, L] what the model says of each scored token of a forest: its log-prob."""
        model = self.trainer.model
        return batch.by_sequence(token_scores(model, model, batch).logps)

    def plain_values(self, model: Any, sequences: list[Scored]) -> Tensor:
        """The same from the model called as transformers means it, one sequence at a time."""
        rows = []
        for sequence in sequences:
            ids = torch.from_numpy(sequence.ids)[None].to(self.trainer.accelerator.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            logps = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
            rows.append(logps.gather(1, ids[0, 1:, None])[:, 0])
        return pad_sequence(rows, batch_first=True)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Gradients of one optimiser step; returns its loss, made up for the averaging over processes."""
        accelerator = self.trainer.accelerator
        model.train()
        batches = self.micro_batches(inputs)
        counts = torch.tensor([self.count(batch) for batch in batches], device=accelerator.device)
        denominator = accelerator.reduce(counts.sum(), reduction="sum")
        tokens = sum(batch.tokens.computed for batch in batches)
        total = torch.zeros((), device=accelerator.device)
        turns = self.turns(len(batches))
        for turn in range(turns):
            batch = batches[min(turn, len(batches) - 1)]
            with nullcontext() if turn == turns - 1 else accelerator.no_sync(model):
                with accelerator.autocast():
                    measured = self.measure(model, batch, denominator)
                loss = measured.loss * accelerator.num_processes  # gradients are averaged over the processes
                if measured.aux is not None:
                    loss = loss + measured.aux * (batch.tokens.computed / tokens)
                if turn >= len(batches):
                    loss = loss * 0.0
                else:
                    self._add(measured)
                accelerator.backward(loss)
            total += loss.detach()
        return total

    def turns(self, mine: int) -> int:
        """Micro-batches every process runs: sharded weights are gathered by all processes together, so one with fewer
        micro-batches runs its last one again, in vain.
        """
        if not self.trainer.is_fsdp_enabled:
            return mine
        everyone = self.trainer.accelerator.gather(torch.tensor([mine], device=self.trainer.accelerator.device))
        return int(everyone.max())

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> None:
        """Counted in `training_step`."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated; the Trainer would look into `inputs` for it."""
        return 0

    def _add(self, measured: Measured) -> None:
        weight = measured.weight
        sums = {key: value * weight for key, value in measured.metrics.items()}
        counts = {"weight": weight, **measured.tokens._asdict()}
        for key, value in {**sums, **counts}.items():
            wide = value.detach().double() if isinstance(value, torch.Tensor) else float(value)
            self._sums[key] = self._sums.get(key, 0.0) + wide

    def _drain(self) -> dict[str, float]:
        """Means since the last call over all processes; under `num_tokens`, tokens read since the stage began."""
        accelerator, keys = self.trainer.accelerator, sorted(self._sums)
        values = [torch.as_tensor(self._sums[key], dtype=torch.double, device=accelerator.device) for key in keys]
        self._sums = {}
        totals = dict(zip(keys, accelerator.reduce(torch.stack(values), reduction="sum").tolist(), strict=True))
        read, computed, padded, weight = (totals.pop(key) for key in (*Tokens._fields, "weight"))
        self._tokens += int(read)
        means = {key: value / weight for key, value in totals.items()} if weight else {}
        return {
            **means,
            "num_tokens": self._tokens,
            "tokens/computed": computed,
            "tokens/padded": padded,
            "tokens/saving": 1 - computed / padded if padded else 0.0,
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objective's metrics to a row of training."""
        if "loss" in logs:
            logs.update(self._drain())
        super().log(logs, start_time)  # type: ignore[misc]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoints inside a run folder need no model card: the run's own report describes them."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        if not math.isfinite(norm):
            raise diverged(self.run, self.trainer.state.global_step + 1, "the gradient")
        return norm


@dataclass(frozen=True)
class StepRows:
    """The rows of an optimiser step of this process, as the data loader hands them on: nothing in it is a tensor."""

    rows: list[dict[str, Any]]


class Supervised(Staged):
    """Mixed into a TRL trainer whose rows are all known beforehand (SFT, preference, reward)."""

    def __init__(self, run: StageRun, *, eval_rows: Dataset | None, **kwargs: Any) -> None:
        self.eval_rows = eval_rows
        super().__init__(run, heldout=eval_rows is not None, data_collator=StepRows, **kwargs)

    @abstractmethod
    def size(self, row: dict[str, Any]) -> int:
        """Tokens of a row, for the token budget of a micro-batch."""

    @abstractmethod
    def sequences(self, rows: list[dict[str, Any]]) -> list[Scored]:
        """What the model reads of some rows."""

    def lay(self, units: list[dict[str, Any]]) -> MicroBatch:
        return lay_out(self.sequences(units), self.trainer.accelerator.device, shared=self.shared)

    def units(self) -> list[dict[str, Any]]:
        rows = self.trainer.train_dataset
        taken = Stream(len(rows), min(len(rows), self.trainer.args.train_batch_size), self.run.stage.train.seed)
        return rows.select(list(taken)).to_list()  # type: ignore[no-any-return]  # datasets is untyped

    def sample(self, count: int) -> list[Scored]:
        found: list[Scored] = []
        for row in self.units():
            found += self.sequences([row])
            if len(found) >= count:
                break
        return found[:count]

    def audit(self) -> list[Proof]:
        return mask_audit([self.sequences([row]) for row in self.units()], self.run.tokenizer.eos_token_id)

    def micro_batches(self, inputs: StepRows) -> list[Any]:
        cuts = self._cut([Unit(self.size(row)) for row in inputs.rows])
        return [self.lay([inputs.rows[number] for number in cut]) for cut in cuts]

    def _cut(self, units: list[Unit]) -> list[range]:
        train = self.run.stage.train
        return split(units, rows=train.batch_size, tokens=train.tokens_per_batch)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        args, rows = self.trainer.args, len(train_dataset or self.trainer.train_dataset)
        return Stream(rows, args.max_steps * args.train_batch_size * args.world_size, self.run.stage.train.seed)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and metrics over all held-out rows: one exact mean, whatever the batches and processes.

        Draws no random number, so measuring more often does not change the run.
        """
        trainer, rows = self.trainer, self.eval_rows
        assert rows is not None  # the recorder asks for it only if there are rows
        rank, processes = trainer.args.process_index, trainer.args.world_size
        cuts = self._cut([Unit(self.size(row)) for row in rows])
        trainer.model.eval()
        total: dict[str, Tensor] = {}
        for turn in range(math.ceil(len(cuts) / processes)):
            number = turn * processes + rank
            mine = number < len(cuts)  # a process without a batch runs one in vain: sharded weights need all of them
            batch = self.lay(rows.select(cuts[number if mine else 0]).to_list())
            with trainer.accelerator.autocast():
                measured = self.measure(trainer.model, batch, 1.0)
            weight = torch.as_tensor(measured.weight, device=measured.loss.device)
            values = {key: value * weight for key, value in measured.metrics.items()}
            for key, value in {**values, "loss": measured.loss, "weight": weight}.items():
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


@torch.no_grad()
def reference_logps(trainer: Any, reference: Any, batch: MicroBatch) -> Tensor:
    """[M] log-probs of the frozen reference: a copy, or, where that is None, the model without its adapter."""
    unwrap = trainer.accelerator.unwrap_model
    if reference is not None:
        return token_scores(reference, unwrap(reference), batch).logps
    with (
        use_adapter(unwrap(trainer.model), adapter_name=None),
        disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs),
    ):
        return token_scores(trainer.model, unwrap(trainer.model), batch).logps


def heldout_name(key: str) -> str:
    """`loss` as `eval/loss`, `train/entropy` as `eval/entropy`, `rewards/margin` as `eval/rewards_margin`."""
    return f"eval/{key.removeprefix('train/').replace('/', '_')}"


def at_start(run: StageRun, eval_rows: Dataset | None) -> dict[str, Any]:
    """Whether the held-out rows are measured before the first step: not when going on from a checkpoint."""
    return {"eval_on_start": eval_rows is not None and run.checkpoint is None}
