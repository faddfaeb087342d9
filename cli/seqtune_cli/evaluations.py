"""What `seqtune eval` evaluates: the last stage of a run, or a model by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seqtune.errors import SeqtuneError
from seqtune_cli import catalogue
from seqtune_cli.words import plan_of, print_json

if TYPE_CHECKING:
    from seqtune.report.run_folder import RunFolder


def run(taken: dict[str, str], words: list[str], *, as_json: bool) -> None:
    """Evaluate and print.

    Raises:
        SeqtuneError: Neither or both of `run=` and `model=` are given, or the plan or the evaluation fails.
    """
    if not taken.keys() & {"run", "model"}:
        raise SeqtuneError("say what to evaluate: run= or model=", where="command line", hint="run=DIR or model=NAME")
    folder: RunFolder | None = None
    if "run" in taken:
        folder, recipe, words = _of_run(taken, words)
    else:
        recipe, words = taken.get("recipe", "evaluate"), _of_model(taken["model"], words)
    _, plan = plan_of(words, recipe)
    from seqtune.evaluation.run import evaluate_plan

    from seqtune_cli import render

    out = Path(taken["out"]) if "out" in taken else None
    with render.progress("evaluating", shown=not as_json) as progress:
        evaluation, file = evaluate_plan(plan, folder, out=out, progress=progress)
    if as_json:
        print_json({"file": str(file), "results": evaluation.results()})
    else:
        render.evaluation(plan.stages[-1].eval.name, evaluation.results(), file)


def _of_run(taken: dict[str, str], words: list[str]) -> tuple[RunFolder, str, list[str]]:
    from seqtune_cli.runs import existing

    for key in ("model", "recipe"):
        if key in taken:
            raise SeqtuneError(f"run= brings its own {key}; {key}={taken[key]} contradicts it", where="command line")
    folder = existing(taken["run"])
    recorded = folder.read_json("provenance.json")
    return folder, str(recorded["recipe"]), [*recorded["words"], *words]


def _of_model(model: str, words: list[str]) -> list[str]:
    """`model=` names a group option (`tiny`) or any model by hub name or folder."""
    if model in catalogue.groups()["model"]:
        return [f"model={model}", *words]
    quoted = model.replace("'", "\\'")
    return [f"model.name='{quoted}'", *words]
