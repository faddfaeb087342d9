"""Rules between fields: each names what contradicts what, and the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any

from seqtune.config.axes import DataSpec, TemplateMathSpec, TinyModelSpec
from seqtune.config.plan import Stage
from seqtune.config.provenance import ComposedStage


@dataclass(frozen=True)
class Violation:
    """A combination that cannot run.

    Args:
        problem: What contradicts what.
        fields: Dotted paths of the fields involved, the one to change first.
        hint: The way out.
    """

    problem: str
    fields: tuple[str, ...]
    hint: str


def violations(stage: Stage, composed: ComposedStage) -> Iterator[Violation]:
    """Every rule the stage breaks."""
    for rule in RULES:
        yield from rule(stage)
    yield from _unread(stage, composed)


def _ratio_and_aggregation(stage: Stage) -> Iterator[Violation]:
    objective: Any = stage.objective
    if objective.family != "policy" or objective.ratio != "sequence" or objective.aggregation == "sequence_mean":
        return
    yield Violation(
        f"objective.ratio=sequence with objective.aggregation={objective.aggregation}: summing over tokens would weigh "
        "each completion by its length, while the ratio that is clipped belongs to the whole completion",
        ("objective.aggregation", "objective.ratio"),
        "objective.aggregation=sequence_mean, or objective.ratio=token",
    )


def _policy_needs(stage: Stage) -> Iterator[Violation]:
    if stage.objective.family != "policy":
        return
    for axis, choice in (("rollout", "transformers"), ("reward", "math_equiv")):
        if getattr(stage, axis) is None:
            yield Violation(
                f"objective '{stage.objective.name}' samples completions and scores them, but there is no {axis}",
                (axis, "objective.name"),
                f"{axis}={choice}",
            )
    if isinstance(stage.data, DataSpec) and stage.data.format not in ("prompt_answer", "prompt_completion"):
        yield _wrong_format(stage, "prompt_answer or prompt_completion")
    if stage.packing.path is not None:
        yield Violation(
            f"packing.path holds packed token rows, but objective '{stage.objective.name}' needs prompts",
            ("packing.path", "objective.name"),
            "packing.path=null",
        )


def _format_fits(stage: Stage) -> Iterator[Violation]:
    family, data = stage.objective.family, stage.data
    fits = {
        "sft": ("text", "prompt_completion", "messages"),
        "preference": ("preference",),
        "reward": ("preference",),
    }.get(family)
    if fits and data.format not in fits:
        yield _wrong_format(stage, " or ".join(fits))
    if family == "policy" and isinstance(data, TemplateMathSpec) and data.format != "prompt_completion":
        yield _wrong_format(stage, "prompt_completion")


def _wrong_format(stage: Stage, fits: str) -> Violation:
    return Violation(
        f"objective '{stage.objective.name}' cannot use data of the format '{stage.data.format}'",
        ("data.format", "objective.name"),
        f"data of the format {fits}, or another objective",
    )


def _one_source(stage: Stage) -> Iterator[Violation]:
    data = stage.data
    if isinstance(data, DataSpec) and data.name is None and data.path is None:
        yield Violation("no data: neither data.path nor data.name is set", ("data.path", "data.name"), "data.path=FILE")
    if isinstance(data, DataSpec) and data.eval_path is not None and data.eval_size:
        yield Violation(
            "held-out examples come from data.eval_path and from data.eval_size at once",
            ("data.eval_size", "data.eval_path"),
            "data.eval_size=0",
        )


def _answer_column(stage: Stage) -> Iterator[Violation]:
    data = stage.data
    if isinstance(data, DataSpec) and data.answer_pattern and data.format not in ("prompt_answer", "prompt_completion"):
        yield Violation(
            f"data.answer_pattern finds an answer, but data of the format '{data.format}' has none",
            ("data.answer_pattern", "data.format"),
            "data.answer_pattern=null",
        )


def _groups_fill_batches(stage: Stage) -> Iterator[Violation]:
    objective: Any = stage.objective
    if objective.family != "policy" or stage.rollout is None:
        return
    train, processes = stage.train, stage.parallel.processes
    size = train.batch_size * processes * train.accumulate * stage.rollout.updates
    if size % objective.group_size:
        factor = objective.group_size // gcd(objective.group_size, size // train.batch_size)
        fitting = factor * max(1, round(train.batch_size / factor))
        yield Violation(
            f"train.batch_size × parallel.processes × train.accumulate × rollout.updates = {size} completions a rollout "
            f"do not make whole groups of objective.group_size={objective.group_size}",
            ("train.batch_size", "objective.group_size"),
            f"train.batch_size={fitting}",
        )


def _lm_head_adapter(stage: Stage) -> Iterator[Violation]:
    targets = getattr(stage.peft, "targets", ())
    if stage.objective.family == "policy" and not isinstance(targets, str) and "lm_head" in targets:
        yield Violation(
            f"objective '{stage.objective.name}' reads log-probs through a fused LM head, which an adapter on lm_head bypasses",
            ("peft.targets", "objective.name"),
            "leave lm_head out of peft.targets",
        )


def _sharded_float16(stage: Stage) -> Iterator[Violation]:
    if stage.parallel.name == "fsdp2" and stage.model.dtype == "float16":
        yield Violation(
            "float16 needs loss scaling, which sharded gradients do not have here",
            ("model.dtype", "parallel.name"),
            "model.dtype=bfloat16",
        )


def _eval_samples(stage: Stage) -> Iterator[Violation]:
    spec = stage.eval
    if spec.name == "pass_at_k":
        if max(spec.k) > spec.samples:
            yield Violation(
                f"pass@{max(spec.k)} needs at least {max(spec.k)} samples a prompt, eval.samples is {spec.samples}",
                ("eval.samples", "eval.k"),
                f"eval.samples={max(spec.k)}",
            )
        return
    if spec.samples != 1 or spec.k != (1,):
        yield Violation(
            f"eval '{spec.name}' takes one completion a prompt",
            ("eval.samples", "eval.k", "eval.name"),
            "eval=pass_at_k",
        )
    if spec.temperature != 1.0:
        yield Violation(f"eval '{spec.name}' samples nothing", ("eval.temperature", "eval.name"), "eval=pass_at_k")


def _eval_between_stages(stage: Stage) -> Iterator[Violation]:
    if not stage.eval.between_stages:
        return
    if not stage.data.eval_size and getattr(stage.data, "eval_path", None) is None:
        yield Violation(
            "eval.between_stages needs held-out examples, and none are held out",
            ("eval.between_stages", "data.eval_size"),
            "data.eval_size=500, or data.eval_path=FILE",
        )
    if stage.eval.name != "perplexity" and stage.reward is None:
        yield Violation(
            f"eval '{stage.eval.name}' needs a reward to judge completions",
            ("eval.name", "reward"),
            "reward=math_equiv",
        )


def _tiny_shapes(stage: Stage) -> Iterator[Violation]:
    model = stage.model
    if not isinstance(model, TinyModelSpec):
        return
    if model.hidden_size % model.heads or (model.hidden_size // model.heads) % 2:
        yield Violation(
            f"model.hidden_size={model.hidden_size} is not an even multiple of model.heads={model.heads}",
            ("model.hidden_size", "model.heads"),
            f"model.hidden_size={2 * model.heads * max(1, round(model.hidden_size / (2 * model.heads)))}",
        )
    if model.heads % model.kv_heads:
        yield Violation(
            f"model.heads={model.heads} is not a multiple of model.kv_heads={model.kv_heads}",
            ("model.kv_heads", "model.heads"),
            f"model.kv_heads={gcd(model.heads, model.kv_heads)}",
        )


def _packing_applies(stage: Stage) -> Iterator[Violation]:
    if stage.objective.family != "sft" and stage.packing.name != "none":
        yield Violation(
            f"objective '{stage.objective.name}' batches padded pairs or completions; packing '{stage.packing.name}' would not be used",
            ("packing.name", "objective.name"),
            "packing=none",
        )


def _evaluates_during_training(stage: Stage) -> Iterator[Violation]:
    if stage.train.eval_every and not stage.data.eval_size and getattr(stage.data, "eval_path", None) is None:
        yield Violation(
            "train.eval_every needs held-out examples, and none are held out",
            ("train.eval_every", "data.eval_size"),
            "data.eval_size=200, or data.eval_path=FILE",
        )


def _unread(stage: Stage, composed: ComposedStage) -> Iterator[Violation]:
    """Values the user set on an axis that nothing in the stage reads."""
    unread = {}
    if stage.objective.family != "policy":
        unread["rollout"] = "only policy objectives sample completions"
    if stage.objective.family != "policy" and stage.eval.name == "perplexity":
        unread["reward"] = "neither the objective nor the evaluation scores completions"
    for axis, why in unread.items():
        for path, origin in composed.origins.items():
            if path.startswith(f"{axis}.") and origin.kind in ("command line", "stage"):
                yield Violation(f"{path}: nothing reads it; {why}", (path,), f"leave {path} out")


RULES: tuple[Callable[[Stage], Iterator[Violation]], ...] = (
    _one_source,
    _format_fits,
    _answer_column,
    _policy_needs,
    _ratio_and_aggregation,
    _groups_fill_batches,
    _lm_head_adapter,
    _sharded_float16,
    _packing_applies,
    _eval_samples,
    _eval_between_stages,
    _evaluates_during_training,
    _tiny_shapes,
)
