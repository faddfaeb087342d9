"""What a stage starts from and what it leaves: `checkpoints/<stage>/final` with weights or adapter, and tokenizer."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from transformers import AutoModelForSequenceClassification

from seqtune.config.axes import TinyModelSpec
from seqtune.errors import SeqtuneError
from seqtune.models.load import check_vocabulary, compute_device, load_model, load_tokenizer, resolve_dtype
from seqtune.training.recorder import write_marker
from seqtune.training.stage import barrier, is_main, stage_folder

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from seqtune.config.plan import Plan
    from seqtune.config.rope import Rope
    from seqtune.report.run_folder import RunFolder

ADAPTER = "adapter_config.json"


def final(folder: RunFolder, stage: str) -> Path:
    """Where a finished stage's weights lie. It appears whole or not at all."""
    return stage_folder(folder, stage) / "final"


def base(folder: RunFolder, stage: str) -> Path:
    """Where the frozen weights under a stage's adapter lie, when nothing else holds them."""
    return stage_folder(folder, stage) / "base"


def check_chain(plan: Plan) -> None:
    """Refuse stages that cannot start from the one before.

    Raises:
        SeqtuneError: A stage follows a reward model, or names another model than the first.
    """
    for before, stage in zip(plan.stages, plan.stages[1:], strict=False):
        if before.objective.family == "reward":
            raise SeqtuneError(
                f"stage '{stage.name}' cannot start from stage '{before.name}', which ends with a reward model",
                where=f"stages.{before.name}.objective",
                hint="train the reward model last, or in a run of its own",
            )
        ours, first = (one.model.model_dump(exclude={"dtype", "attention", "rope"}) for one in (stage, plan.stages[0]))
        if ours != first:
            raise SeqtuneError(
                f"stage '{stage.name}' names another model than '{plan.stages[0].name}', but starts from its weights",
                where=f"stages.{stage.name}.model",
                hint="leave the model of a later stage as it is, or make it a run of its own",
            )


def load_start(plan: Plan, folder: RunFolder, index: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer stage `index` starts from: the plan's model, or what the stage before left.

    Raises:
        SeqtuneError: The model cannot be loaded, or the tokenizer does not fit it.
    """
    if index:
        return load_end(plan, folder, index - 1, rope=plan.stages[index].model.rope)
    spec = plan.stages[0].model
    tokenizer = load_tokenizer(spec)
    model = load_model(spec)
    check_vocabulary(model, tokenizer)
    return model, tokenizer


def keep_base(plan: Plan, folder: RunFolder, index: int, model: PreTrainedModel) -> None:
    """Give the frozen weights under an adapter a place that `peft` finds them at; the first process writes them.

    A hub model and the full weights a stage before left have theirs already.
    """
    stage, spec = plan.stages[index], plan.stages[index].model
    if stage.peft.build() is None:
        return
    before = final(folder, plan.stages[index - 1].name) if index else None
    if before is not None and not (before / ADAPTER).is_file():
        model.name_or_path = str(before.resolve())
        return
    if before is None and not isinstance(spec, TinyModelSpec):
        return
    place = base(folder, stage.name)
    if not place.is_dir() and is_main():
        partial = place.with_name("base.partial")
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        os.replace(partial, place)
    model.name_or_path = str(place.resolve())


def save_end(trainer: Any, folder: RunFolder, stage: str) -> None:
    """Write the weights (or the adapter) and the tokenizer a stage ends with; every process calls it."""
    place = final(folder, stage)
    partial = place.with_name("final.partial")
    if is_main():
        shutil.rmtree(partial, ignore_errors=True)
    barrier()
    trainer.save_model(str(partial))
    if is_main():
        (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
        recorder = trainer.recorder
        write_marker(folder, partial, trainer.state.global_step, recorder.tokens, recorder.seconds)
        os.replace(partial, place)
    barrier()


def load_end(
    plan: Plan,
    folder: RunFolder,
    index: int,
    *,
    device: torch.device | str | None = None,
    rope: Rope | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model a finished stage left, its adapter merged into the weights, and its tokenizer.

    Args:
        plan: The plan of the run.
        folder: The run.
        index: Number of the stage, from 0; -1 is the last.
        device: Where the weights go; None takes this process's accelerator, or the CPU.
        rope: Rotary positions of the stage that goes on from it; None keeps those it was trained with.

    Raises:
        SeqtuneError: The stage is not finished, or its base model cannot be loaded.
    """
    stage = plan.stages[index]
    place = final(folder, stage.name)
    if not place.is_dir():
        raise SeqtuneError(
            f"stage '{stage.name}' of {folder.path} is not finished",
            where=str(place),
            hint=f"finish it: seqtune train --resume {folder.path}",
        )
    tokenizer = load_tokenizer(stage.model, folder=place)
    adapted = (place / ADAPTER).is_file()
    frozen = _frozen(plan, folder, index) if adapted else place
    if stage.objective.family == "reward":
        model = _load_scorer(plan, folder, index, frozen if not adapted else None, device)
    else:
        spec = stage.model if rope is None else stage.model.model_copy(update={"rope": rope})
        model = load_model(spec, device=device, folder=frozen)
    if adapted:
        from peft import PeftModel

        merged = PeftModel.from_pretrained(model, place).merge_and_unload()
        model = merged.requires_grad_(True)  # peft froze what lay under the adapter
    return model, tokenizer


def _frozen(plan: Plan, folder: RunFolder, index: int) -> Path | None:
    """The folder of the weights under a stage's adapter; None means the plan's own model."""
    index %= len(plan.stages)
    place = base(folder, plan.stages[index].name)
    if place.is_dir():
        return place
    return final(folder, plan.stages[index - 1].name) if index else None


def _load_scorer(
    plan: Plan, folder: RunFolder, index: int, saved: Path | None, device: torch.device | str | None
) -> PreTrainedModel:
    """A reward model: from its own saved weights, or rebuilt from the frozen ones for its adapter to go on."""
    stage = plan.stages[index]
    if saved is None:
        from seqtune.training.reward import scorer

        body = load_model(stage.model, device=device, folder=_frozen(plan, folder, index))
        return scorer(body, pad_token_id=body.config.pad_token_id, seed=stage.train.seed)
    place = compute_device() if device is None else device
    model = AutoModelForSequenceClassification.from_pretrained(
        saved, dtype=resolve_dtype(stage.model.dtype, compute_device()), use_safetensors=True
    )
    return model.to(place).eval()
