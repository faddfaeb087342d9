"""What a stage names outside its plan: folders, files, columns of its data. Looked for before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtune import hub
from seqtune.config.axes import ModelSpec
from seqtune.config.mixture import MixtureSpec
from seqtune.data import files
from seqtune.errors import Problem, SeqtuneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from seqtune.config.plan import Stage
    from seqtune.config.spec import RewardSpec

    Check = tuple[Callable[[Any, str], object], Any, str]
    """What refuses a path that is not there, the path, and the field that names it."""


def check_files(stages: Iterable[Stage]) -> None:
    """Refuse stages that name folders or files which are not there: the last one may begin hours after the first.

    Raises:
        SeqtuneError: With a problem for each.
    """
    problems: dict[Problem, None] = {}
    for stage in stages:
        for check, path, where in (*_models(stage), *_data(stage)):
            try:
                check(path, where)
            except SeqtuneError as error:
                problems |= dict.fromkeys(error.problems)
        for place, where in _programs(stage):
            if not Path(place).expanduser().is_file():
                hint = f"paths are relative to the working directory, {Path.cwd()}"
                problems[Problem(f"there is no file '{place}'", where, hint)] = None
    if problems:
        raise SeqtuneError.of(problems)


def check_columns(stage: Stage, columns: Iterable[str]) -> None:
    """Refuse data without a column that the stage's reward cannot do without.

    Raises:
        SeqtuneError: Naming the first such column, and those there are.
    """
    reward: Any = stage.reward
    at_hand = sorted(name for name in columns if not name.startswith("_"))
    missing = sorted(reward.columns.difference(at_hand))
    if missing:
        raise SeqtuneError(
            f"reward '{reward.name}' reads the column '{missing[0]}', which the data does not have",
            "reward.name",
            f"columns at hand: {', '.join(at_hand)}; data.columns and the fields of the reward name others",
        )


def _models(stage: Stage) -> Iterator[Check]:
    model = stage.model
    if isinstance(model, ModelSpec):
        yield hub.check_folder, model.name, "model.name"
        if model.tokenizer is not None:
            yield hub.check_folder, model.tokenizer, "model.tokenizer"


def _data(stage: Stage) -> Iterator[Check]:
    data: Any = stage.data
    if isinstance(data, MixtureSpec):
        for source in data.sources:
            yield files.expand, source.path, "data.sources"
    elif getattr(data, "path", None) is not None and stage.packing.path is None:
        yield files.expand, data.path, "data.path"
    if getattr(data, "eval_path", None) is not None:
        yield files.expand, data.eval_path, "data.eval_path"


def _programs(stage: Stage) -> Iterator[tuple[str, str]]:
    """Python files of rewards and tools, and the corpora of tools."""
    if stage.reward is not None and (stage.rollout is not None or stage.eval.between_stages):
        for reward in _parts(stage.reward):
            if ".py:" in reward.name:
                yield reward.name.rpartition(":")[0], f"reward.name={reward.name}"
    for name, tool in stage.rollout.tools.items() if stage.rollout else ():
        if ".py:" in tool.name:
            yield tool.name.rpartition(":")[0], f"rollout.tools.{name}.name"
        if isinstance(path := getattr(tool, "path", None), str):
            yield path, f"rollout.tools.{name}.path"


def _parts(reward: RewardSpec) -> Iterator[RewardSpec]:
    yield reward
    inner: Any = reward
    for part in (*getattr(inner, "parts", {}).values(), *filter(None, [getattr(inner, "correct", None)])):
        yield from _parts(part)
