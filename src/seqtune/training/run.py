"""A run from its plan: every stage in order, each from the weights the one before left, and going on after a crash."""

from __future__ import annotations

import errno
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from seqtune.config.mixture import MixtureSpec
from seqtune.errors import SeqtuneError
from seqtune.hub import quiet as quiet
from seqtune.report.events import Evaluated, Notice, RunFinished, RunStarted, from_json
from seqtune.report.run_folder import RunFolder
from seqtune.training import ends, places
from seqtune.training.recorder import COMPLETE, complete_checkpoints, read_marker
from seqtune.training.stage import StageRun, barrier, is_main, stage_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from seqtune.config.plan import Plan, Stage
    from seqtune.report.events import Watch
    from seqtune.training.audit import Proof

TRAINERS = {
    "sft": "seqtune.training.sft:trainer",
    "preference": "seqtune.training.preference:trainer",
    "reward": "seqtune.training.reward:trainer",
    "policy": "seqtune.training.policy:trainer",
    "offline": "seqtune.training.offline:trainer",
    "ranking": "seqtune.training.offline:trainer",
}
"""By the family of the objective: a function `StageRun -> transformers.Trainer`."""

UNTRAINED = "untrained"


def trainer_of(stage: Stage) -> str:
    """Where the trainer of a stage is found: that of its objective's family, but a policy samples no groups it has."""
    family = stage.objective.family
    return TRAINERS["offline" if family == "policy" and stage.data.format == "groups" else family]


def train(plan: Plan, *, folder: RunFolder, watch: Watch) -> None:
    """Train every stage of a plan.

    Args:
        plan: The resolved plan; the same as the `plan.yaml` of the folder.
        folder: A created run folder; everything the run leaves goes there.
        watch: Told about every event, in this process.

    Raises:
        SeqtuneError: Anything the user can mend; what was complete before is kept and `resume` goes on from it.
    """
    ends.check_chain(plan)
    with folder.lock():
        _go(plan, folder, folder.recording(watch))


def resume(folder: RunFolder, *, watch: Watch) -> None:
    """Go on with a run that was interrupted: from the last complete checkpoint of its first unfinished stage.

    What the interrupted run wrote after that checkpoint is dropped and done again, with the same numbers. A finished
    run is left as it is.

    Raises:
        SeqtuneError: As `train`.
    """
    from seqtune.config.reading import load

    plan = load(folder.plan_text())
    ends.check_chain(plan)
    with folder.lock():
        if (folder.path / "report.html").is_file() and not _unfinished(plan, folder):
            watch(Notice(f"{folder.path} is finished; there is nothing to resume"))
            return
        _drop_incomplete(plan, folder)
        _go(plan, folder, folder.recording(watch))


def run_stage(plan: Plan, folder: RunFolder, index: int, watch: Watch) -> None:
    """Train one stage in this process, alone or as one of several under a launcher, and save what it ends with.

    Raises:
        SeqtuneError: As `train`.
    """
    from transformers import set_seed

    from seqtune.registry import load
    from seqtune.training import proofs

    stage = plan.stages[index]
    quiet()
    output = stage_folder(folder, stage.name)
    output.mkdir(parents=True, exist_ok=True)
    model, tokenizer = ends.load_start(plan, folder, index)
    ends.keep_base(plan, folder, index, model)
    saved = complete_checkpoints(output)
    run = _stage_run(plan, folder, index, watch, model, tokenizer, saved[-1] if saved else None)
    set_seed(stage.train.seed)
    with _disk_full(folder, stage):
        trainer = load(trainer_of(stage))(run)
        if run.checkpoint is None and is_main():
            folder.write_json(f"proofs/{stage.name}.json", proofs.check(trainer))
        barrier()
        trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
        ends.save_end(trainer, folder, stage.name)
    barrier()


def _stage_run(
    plan: Plan, folder: RunFolder, index: int, watch: Watch, model: Any, tokenizer: Any, checkpoint: Path | None
) -> StageRun:
    """A stage with its examples, ready for its trainer.

    Raises:
        SeqtuneError: The data cannot be read, or there is none.
    """
    from seqtune.training.pack import examples_for

    stage = plan.stages[index]
    examples = examples_for(stage)
    later = stage.packing.path is not None or isinstance(
        stage.data, MixtureSpec
    )  # a stream is read as it is trained on
    if not len(examples.train) and not later:
        raise SeqtuneError("there are no training examples", where="data", hint="check data.path and data.limit")
    run = StageRun(
        stage=stage,
        index=index,
        stages=len(plan.stages),
        folder=folder,
        watch=watch,
        model=model,
        tokenizer=tokenizer,
        examples=examples,
        checkpoint=checkpoint,
    )
    if examples.skipped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in examples.skipped.items())
        run.notice(f"bad rows left out (data.on_error=skip): {reasons}")
    return run


def diagnose(plan: Plan, *, watch: Watch) -> dict[str, list[Proof]]:
    """Prove every stage of a plan on its own model and data, in this process, and train nothing.

    Each stage is proven on the weights the plan starts from.

    Returns:
        For each stage, what was checked and found.

    Raises:
        SeqtuneError: The model or the data cannot be had, or a trainer refuses the stage.
    """
    from seqtune.parallel.specs import Single
    from seqtune.registry import load
    from seqtune.training.proofs import prove

    quiet()
    stages = tuple(stage.model_copy(update={"parallel": Single()}) for stage in plan.stages)
    alone = plan.model_copy(update={"stages": stages})
    found = {}
    with TemporaryDirectory() as place:
        folder = RunFolder(Path(place))
        for index, stage in enumerate(stages):
            stage_folder(folder, stage.name).mkdir(parents=True)
            model, tokenizer = ends.load_start(alone, folder, 0)
            run = _stage_run(alone, folder, index, watch, model, tokenizer, None)
            found[stage.name] = prove(load(trainer_of(stage))(run), quick=False)
    return found


def _go(plan: Plan, folder: RunFolder, watch: Watch) -> None:
    began = time.monotonic()
    places.check_files(_unfinished(plan, folder))
    watch(RunStarted(str(folder.path), tuple(stage.name for stage in plan.stages)))
    first = plan.stages[0]
    if first.eval.between_stages:
        _evaluate(plan, folder, -1, watch)
    for index, stage in enumerate(plan.stages):
        if not ends.final(folder, stage.name).is_dir():
            if stage.parallel.processes > 1:
                _launch(folder, stage, watch)
            else:
                run_stage(plan, folder, index, watch)
        if stage.eval.between_stages:
            _evaluate(plan, folder, index, watch)
    from seqtune.report.html import write_report

    write_report(folder)
    watch(RunFinished(str(folder.path), time.monotonic() - began))


def _launch(folder: RunFolder, stage: Stage, watch: Watch) -> None:
    from seqtune.models.load import compute_device
    from seqtune.parallel.launch import launch

    if stage.parallel.name == "fsdp2" and compute_device().type == "cpu":
        raise SeqtuneError(
            "fsdp2 needs accelerators: on a CPU accelerate shards nothing and trains with ddp without a word",
            where="parallel.name",
            hint=f"parallel=ddp parallel.processes={stage.parallel.processes}",
        )
    launch(
        "seqtune.training.worker",
        [str(folder.path), stage.name],
        processes=stage.parallel.processes,
        log=folder.path / "workers.log",
        receive=lambda message: watch(from_json(message)),
    )


def _evaluate(plan: Plan, folder: RunFolder, index: int, watch: Watch) -> None:
    """Measure the model after stage `index` (-1: untrained) as its plan says, once."""
    from seqtune.evaluation.run import evaluate_stage

    stage = plan.stages[max(index, 0)]
    label = stage.name if index >= 0 else UNTRAINED
    if (folder.path / "eval" / f"{label}.json").is_file() or stage.objective.family == "reward":
        return
    quiet()
    model, tokenizer = ends.load_end(plan, folder, index) if index >= 0 else ends.load_start(plan, folder, 0)
    found, _ = evaluate_stage(plan, stage, model, tokenizer, into=folder.path / "eval", name=label, label=label)
    watch(Evaluated(stage.name, label, found.results()))


def _unfinished(plan: Plan, folder: RunFolder) -> list[Stage]:
    return [stage for stage in plan.stages if not ends.final(folder, stage.name).is_dir()]


def _drop_incomplete(plan: Plan, folder: RunFolder) -> None:
    """Remove what an interruption cut short, and the records of steps that will be done again."""
    kept = {"metrics": 0, "samples": 0}
    for stage in plan.stages:
        output = stage_folder(folder, stage.name)
        for path in output.glob("checkpoint-*"):
            if not (path / COMPLETE).is_file():
                shutil.rmtree(path)
        for partial in output.glob("*.partial"):
            shutil.rmtree(partial)
        place = ends.final(folder, stage.name)
        good = [place] if place.is_dir() else complete_checkpoints(output)[-1:]
        kept = read_marker(good[0]) if good else kept
        if not place.is_dir():
            break
    folder.truncate_metrics(kept["metrics"])
    folder.truncate_samples(kept["samples"])


@contextmanager
def _disk_full(folder: RunFolder, stage: Stage) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torch and safetensors raise kinds of their own; all but a full disk go on as they are
        if not _says_disk_full(error, folder.path):
            raise
        kept = complete_checkpoints(stage_folder(folder, stage.name))
        saved = (
            f"the checkpoint of step {read_marker(kept[-1])['step']} is complete and kept"
            if kept
            else "nothing of this stage was saved before"
        )
        raise SeqtuneError(
            f"the disk is full; {saved}",
            where=str(folder.path),
            hint=f"free some space, then seqtune train --resume {folder.path}; "
            "train.keep_checkpoints and train.save_every decide how much is written",
        ) from error


def _says_disk_full(error: BaseException | None, path: Path) -> bool:
    """Whether an error, or one it came from, is that of a full disk. safetensors and torch hide the error number."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        if "os error 28" in str(error) or "No space left on device" in str(error):
            return True
        if "PytorchStreamWriter" in str(error) and shutil.disk_usage(path).free < 1 << 20:
            return True
        error = error.__cause__ or error.__context__
    return False
