"""An evaluation and the two files it leaves: what was measured, and every example of it."""

from __future__ import annotations

from datetime import datetime
from itertools import count
from typing import TYPE_CHECKING, Any

from seqtune.data.sources import load as load_data
from seqtune.evaluation.evaluate import Evaluation, evaluate
from seqtune.report.run_folder import encode, write_atomic, write_lines

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from seqtune.config.plan import Plan, Stage
    from seqtune.config.spec import RewardSpec
    from seqtune.evaluation.evaluate import Progress


def evaluate_stage(
    plan: Plan,
    stage: Stage,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    into: Path,
    name: str | None = None,
    label: str | None = None,
    whole: bool = False,
    progress: Progress | None = None,
) -> tuple[Evaluation, Path]:
    """Evaluate a model on the held-out examples of a stage, as its plan says.

    Args:
        plan: Where a reward is taken from when the stage has none: its first stage that has one.
        stage: Says data, reward and what to measure.
        model: The weights.
        tokenizer: Of the model.
        into: Folder of the two files: `<name>.json` with the estimates, `<name>.items.jsonl` with a row an example.
        name: Of the files; None takes the evaluation's name and the time.
        whole: Measure all examples of the stage's data instead of the held-out ones.
        label: What tables call the model; None takes the name of the stage.
        progress: As `evaluate`.

    Returns:
        What was found, and the path of the JSON file.

    Raises:
        SeqtuneError: As `evaluate`, or the data cannot be read.
    """
    reward, examples = _reward(plan, stage), load_data(stage.data)
    found = evaluate(
        model,
        tokenizer,
        examples.train if whole else examples.heldout,
        stage.eval,
        reward.build() if reward is not None else None,
        progress=progress,
    )
    now = datetime.now().astimezone()
    file = into / f"{name}.json" if name is not None else _free(into, f"{stage.eval.name}-{now:%Y-%m-%d_%H-%M-%S}")
    record: dict[str, Any] = {
        "label": label or stage.name,
        "stage": stage.name,
        "time": now.isoformat(timespec="seconds"),
        "eval": stage.eval.model_dump(mode="json"),
        "data": stage.data.model_dump(mode="json"),
        "reward": reward.model_dump(mode="json") if reward is not None else None,
        "examples": len(found.items),
        "skipped": examples.skipped,
        "metrics": found.results(),
    }
    write_lines(file.with_suffix(".items.jsonl"), found.items)
    write_atomic(file, encode(record, indent=2) + "\n")  # last: who finds it finds the items
    return found, file


def _free(into: Path, stem: str) -> Path:
    """A JSON file that does not exist yet."""
    places = (into / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json") for number in count(1))
    return next(place for place in places if not place.exists())


def _reward(plan: Plan, stage: Stage) -> RewardSpec | None:
    """What scores completions; None when they are not scored."""
    if stage.eval.name == "perplexity":
        return None
    return next((one.reward for one in (stage, *plan.stages) if one.reward is not None), None)
