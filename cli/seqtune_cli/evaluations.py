"""What `seqtune eval` evaluates: the last stage of a run, or a model by name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtune.config.plan import Stage
from seqtune.errors import Problem, SeqtuneError

if TYPE_CHECKING:
    from seqtune.config.plan import Plan
    from seqtune.config.provenance import ComposedStage
    from seqtune.report.run_folder import RunFolder

SWAPPED = ("data", "reward")
"""Groups that an evaluation may want otherwise than the run had them, and whose options differ in their fields."""
HELD_OUT = ("data.eval_path=", "data.eval_size=")


def run(taken: dict[str, str], words: list[str], *, as_json: bool) -> None:
    """Evaluate and print.

    Raises:
        SeqtuneError: Neither or both of `run=` and `model=` are given, or the plan or the evaluation fails.
    """
    folder = _folder(taken)
    _read_by_evaluations(words, folder)
    # A file given here is there to be evaluated, all of it, unless words say what of it is held out.
    whole = any(word.startswith("data.path=") for word in words) and not any(w.startswith(HELD_OUT) for w in words)
    plan = _plan(taken, words, folder)
    stage, data = plan.stages[0], plan.stages[0].data
    if whole:
        stage = stage.model_copy(update={"data": data.model_copy(update={"eval_size": 0, "eval_path": None})})
    elif not data.eval_size and getattr(data, "eval_path", None) is None:
        raise SeqtuneError(
            "nothing is held out to evaluate on", "data.eval_size", "data.path=FILE evaluates a whole file"
        )
    from seqtune.evaluation.run import evaluate_stage
    from seqtune_cli import render
    from seqtune_cli.words import print_json

    into = Path(taken["out"]) if "out" in taken else folder.path / "eval" if folder else Path("evals")
    model, tokenizer = _weights(plan, folder)
    with render.progress("evaluating", shown=not as_json) as progress:
        evaluation, file = evaluate_stage(
            plan, stage, model, tokenizer, into=into, whole=whole, label=_label(taken), progress=progress
        )
    if folder is not None:
        from seqtune.report.html import write_report

        write_report(folder)
    if as_json:
        print_json({"file": str(file), "results": evaluation.results()})
    else:
        render.evaluation(f"{stage.eval.name} of {_label(taken)}", evaluation.results(), file)


def _read_by_evaluations(words: list[str], folder: RunFolder | None) -> None:
    """Refuse words that an evaluation would not read.

    Raises:
        SeqtuneError: One problem for each.
    """
    read = ("data", "eval", "reward") if folder else ("data", "eval", "model", "reward")
    keys = [re.sub(r"^[+~]*(stages\.[^.]+\.)?", "", word.partition("=")[0]) for word in words]
    why = "it has the model of the run" if folder else "it trains nothing"
    unread = [key for key in keys if (axis := re.split(r"[.@]", key)[0]) in Stage.model_fields and axis not in read]
    if unread:
        hint = f"leave it out; an evaluation reads {', '.join(read)}"
        raise SeqtuneError.of(
            Problem(f"{key}: an evaluation does not read it, {why}", "command line", hint) for key in unread
        )


def _label(taken: dict[str, str]) -> str:
    return taken.get("run") or taken["model"]


def _folder(taken: dict[str, str]) -> RunFolder | None:
    """The run to evaluate; None when a model is named."""
    from seqtune_cli.runs import existing

    if len(taken.keys() & {"run", "model"}) != 1:
        told = "run= and model= both say what to evaluate" if "run" in taken else "nothing says what to evaluate"
        raise SeqtuneError(told, "command line", "run=runs/RECIPE/TIME, or model=NAME of a hub model or folder")
    if "run" in taken and "recipe" in taken:
        raise SeqtuneError("run= has its recipe already", "command line", f"leave recipe={taken['recipe']} out")
    return existing(taken["run"]) if "run" in taken else None


def _plan(taken: dict[str, str], words: list[str], folder: RunFolder | None) -> Plan:
    """The last stage of the run's recipe with the words added to the run's own, or the recipe `evaluate`."""
    from seqtune.config.reading import read
    from seqtune_cli.compose import compose

    if folder is None:
        composed = compose([*_model(taken["model"]), *words], taken.get("recipe", "evaluate"))
    else:
        recorded = folder.read_json("provenance.json")
        composed = compose([*recorded["words"], *words], recorded["recipe"])
    last = composed.stages[-1]
    for axis in SWAPPED:
        if any(word.startswith(f"{axis}=") for word in words):
            last = _without_leftovers(last, axis, words)
    return read(replace(composed, stages=(last,)), "eval")


def _without_leftovers(stage: ComposedStage, axis: str, words: list[str]) -> ComposedStage:
    """A stage whose group was swapped for the evaluation, without what the run said about the group it had.

    Fields that the new group has too (`data.chat`) keep their values, and nothing the words say is left out.
    """
    from seqtune.config.reading import spec_of

    if axis in stage.unread:
        return stage
    said = {word.lstrip("+").partition("=")[0] for word in words}
    known = spec_of(axis, stage.values[axis], stage).model_fields
    values = {key: value for key, value in stage.values[axis].items() if key in known or f"{axis}.{key}" in said}
    return replace(stage, values={**stage.values, axis: values})


def _model(name: str) -> list[str]:
    """`model=` names a group option (`tiny`) or any model by hub name or folder."""
    from seqtune_cli import catalogue

    if name in catalogue.groups()["model"]:
        return [f"model={name}"]
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    return ["model=pretrained", f"model.name='{escaped}'"]


def _weights(plan: Plan, folder: RunFolder | None) -> tuple[Any, Any]:
    from seqtune.training.run import quiet

    quiet()
    if folder is not None:
        from seqtune.config.reading import load
        from seqtune.training.ends import load_end

        # The run's own plan says what the weights are, whatever words say about data and measure.
        return load_end(load(folder.plan_text()), folder, -1)
    from seqtune.models.load import load_model, load_tokenizer

    return load_model(plan.stages[0].model), load_tokenizer(plan.stages[0].model)
