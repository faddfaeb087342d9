"""Rules between fields: each names what contradicts what, and the way out."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from seqtune.config.rules import data, evaluation, inputs, model, packing, policy
from seqtune.config.rules.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from seqtune.config.plan import Stage
    from seqtune.config.provenance import ComposedStage

DATA_AND_EVALUATION: tuple[Callable[[Stage], Iterator[Violation]], ...] = (
    data.one_source,
    data.answer_column,
    data.chat_renders,
    data.columns_of_the_format,
    evaluation.eval_samples,
    evaluation.eval_entropy,
    model.tiny_shapes,
)
TRAINING: tuple[Callable[[Stage], Iterator[Violation]], ...] = (
    data.format_fits,
    policy.policy_needs,
    policy.groups_alone,
    inputs.inputs_are_there,
    policy.tools_fit,
    policy.ranks_agree,
    policy.parts_fit,
    policy.ratio_and_aggregation,
    packing.documents_whole,
    policy.groups_fill_batches,
    model.lm_head_adapter,
    policy.synced_reference,
    policy.filters_and_ratios,
    model.sharded_float16,
    packing.packing_applies,
    data.mixture_is_streamed,
    packing.orders_fit,
    evaluation.eval_between_stages,
    evaluation.evaluates_during_training,
)
SAID: tuple[Callable[[Stage, ComposedStage], Iterator[Violation]], ...] = (data.two_sources,)


def training(stage: Stage, given: ComposedStage) -> Iterator[Violation]:
    """Every rule a stage that is to be trained breaks.

    Args:
        stage: The typed stage.
        given: What it was read from; tells what was said and what is a default.
    """
    for rule in (*DATA_AND_EVALUATION, *TRAINING):
        yield from rule(stage)
    for said in SAID:
        yield from said(stage, given)


def evaluating(stage: Stage) -> Iterator[Violation]:
    """Every rule a stage whose model is only evaluated breaks."""
    for rule in (*DATA_AND_EVALUATION, evaluation.evaluation_judges):
        yield from rule(stage)


def between_stages(stages: Sequence[Stage]) -> Iterator[tuple[str, Violation]]:
    """Every rule that one stage breaks together with an earlier one, with the name of the later."""
    for before, stage in pairwise(stages):
        if before.objective.family == "reward":
            yield (
                stage.name,
                Violation(
                    f"stage '{stage.name}' cannot start from stage '{before.name}', which ends with a reward model",
                    ("objective.name",),
                    "train the reward model last, or in a run of its own",
                ),
            )
        ours, first = (one.model.model_dump(exclude={"dtype", "attention", "rope"}) for one in (stage, stages[0]))
        changed = sorted(key for key in ours.keys() | first.keys() if ours.get(key) != first.get(key))
        if changed:
            yield (
                stage.name,
                Violation(
                    f"model.{changed[0]}: stage '{stage.name}' names another model than '{stages[0].name}', "
                    "but starts from its weights",
                    (f"model.{changed[0]}",),
                    "leave the model of a later stage as it is, or make it a run of its own",
                ),
            )
