"""A stage's reward as TRL calls it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from seqtune.errors import SeqtuneError
from seqtune.evaluation.evaluate import plain
from seqtune.objectives.specs.foresight import Foresight
from seqtune.rewards.combined import Combined
from seqtune.rewards.score import score

if TYPE_CHECKING:
    from seqtune.rewards.score import Score
    from seqtune.training.stage import StageRun


class Scorer:
    """The stage's reward as TRL calls it.

    Args:
        run: Of a stage that has a reward.

    Raises:
        SeqtuneError: There is no reward; when called: the reward fails or returns something unusable; names the row.
    """

    __name__ = "reward"  # TRL keys its records by it

    def __init__(self, run: StageRun) -> None:
        spec, objective = run.stage.reward, run.stage.objective
        if spec is None:
            raise SeqtuneError(
                f"objective '{objective.name}' needs a reward", "reward", "choose one: reward=math_equiv"
            )
        self.name, self.reward, self._tokenizer = spec.name, spec.build(), run.tokenizer
        self.ranks: int | None = getattr(objective, "ranks", None) if "rank_rewards" in objective.needs else None
        self.by_rank: list[list[float]] = []
        """What each rank of the last call's completions earned, NaN in a row without a score."""
        self._plans = "plan_rewards" in objective.needs
        self.by_plan: list[float] = []
        """What the plan of each of the last call's completions earned, NaN in a row without a score."""
        self._foresight: Foresight | None = objective if isinstance(objective, Foresight) else None
        self.by_subgoal: list[list[float]] = []
        """Scores of form, judge and each execution of the last call's completions, NaN in a row without them."""
        self.by_part: list[list[float]] = []
        """What each part of a combined reward gave the last call's completions, as `Combined.columns`."""
        self.written: list[list[int]] | None = None
        """Where completions call tools: the tokens of the next call's completions that the model wrote itself. They are
        judged by these alone, so that no answer counts because a tool gave it."""
        self.weights: tuple[float, ...] = self.reward.column_weights if isinstance(self.reward, Combined) else ()
        """Of these columns."""

    def __call__(
        self,
        prompts: list[Any],
        completions: list[str],
        completion_ids: Any,
        trainer_state: Any,
        log_extra: Any,
        log_metric: Any,
        **columns: list[Any],
    ) -> list[float | None]:
        if self.written is not None:
            completion_ids = self.written
            completions = self._tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        texts = [plain(prompt) for prompt in prompts], completions
        columns["completion_ids"] = completion_ids  # rewards may count tokens
        if isinstance(self.reward, Combined):
            parts = self.reward.parts(*texts, **columns)
            for part, values in parts.items():
                for value in values:
                    if value is not None:
                        log_metric(f"reward/{part}/mean", value)
            self.by_part = self.reward.columns(parts)
            return self.reward.combined(parts)
        if self.ranks is None and self._foresight is None and not self._plans:
            return score(self.reward, *texts, columns, name=self.name)
        found = score(self.reward, *texts, columns, name=self.name, vectors=True)
        if self._foresight is not None:
            return self._worth(found, self._foresight)
        if self._plans:
            pairs = [self._numbers_of(value, 2, "plan_advantage", "rewards, of answer and plan") for value in found]
            self.by_plan = [plan for _, plan in pairs]
            return [None if value is None else answer for value, (answer, _) in zip(found, pairs, strict=True)]
        self.by_rank = [self._numbers_of(value, self.ranks or 0, "ranks", "ranks") for value in found]
        return [None if value is None else sum(row) for value, row in zip(found, self.by_rank, strict=True)]

    def _worth(self, found: list[Score], spec: Foresight) -> list[float | None]:
        """What subgoals are worth; keeps the scores they are made of."""
        learnt = f"scores of form, judge and {spec.executions} executions"
        rows = [self._numbers_of(value, 2 + spec.executions, "executions", learnt) for value in found]
        self.by_subgoal = rows
        form, judge, tries = torch.tensor(rows).tensor_split([1, 2], dim=1)
        worth: list[float] = spec.build_worth()(form.squeeze(1), tries, judge.squeeze(1)).tolist()
        return [None if value is None else one for value, one in zip(found, worth, strict=True)]

    def _numbers_of(self, value: Score, wanted: int, field: str, learnt: str) -> list[float]:
        if value is None:
            return [math.nan] * wanted
        if not isinstance(value, list) or len(value) != wanted:
            got = f"{len(value)} numbers" if isinstance(value, list) else "one number"
            raise SeqtuneError(
                f"reward '{self.name}' returned {got} a completion; the objective learns {wanted} {learnt}",
                f"objective.{field}",
                f"return a list of {wanted} numbers, or choose another objective",
            )
        return value
