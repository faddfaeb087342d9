"""When a stage logs a row, measures its held-out loss and writes a checkpoint, and what it writes."""

from __future__ import annotations

import json
import math
import shutil
import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from seqtune.errors import SeqtuneError
from seqtune.report.events import StageStarted, Step
from seqtune.training.stage import barrier

if TYPE_CHECKING:
    from pathlib import Path

    from seqtune.report.run_folder import RunFolder
    from seqtune.training.stage import StageRun


COMPLETE = "complete.json"
"""Written last into a checkpoint: a folder without it was cut short and is never read."""


RENAMED = {"mean_token_accuracy": "train/token_accuracy"}


NOT_METRICS = {"loss", "epoch", "step", "num_tokens", "num_input_tokens_seen", "total_flos"}


def area_name(key: str) -> str:
    """TRL's flat metric key as `area/name`: `grad_norm` becomes `train/grad_norm`, `eval_loss` becomes `eval/loss`."""
    if key in RENAMED:
        return RENAMED[key]
    if "/" in key:
        return key
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


def heldout_name(key: str) -> str:
    """`loss` as `eval/loss`, `train/entropy` as `eval/entropy`, `rewards/margin` as `eval/rewards_margin`."""
    return f"eval/{key.removeprefix('train/').replace('/', '_')}"


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
